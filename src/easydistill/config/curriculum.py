"""Sections of curriculum jobs: who teaches, learns and judges, and how the student is examined."""

from __future__ import annotations

from typing import ClassVar, Literal

from easydistill.config.base import NonNegativeFloat, PositiveInt, Seed
from easydistill.config.inference import SamplingConfig, TransformersInferenceConfig
from easydistill.config.models import ModelRef, ModelsConfig


class CurriculumModels(ModelsConfig):
    """Teacher, student and judge."""

    judge: ModelRef | None = None
    """The model that judges, where it runs on this machine; by default the teacher."""


class StudentInferenceConfig(SamplingConfig):
    """How the student answers when it is examined: on this machine, through transformers."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"batch_size", "max_batch_tokens"})

    temperature: NonNegativeFloat = 0.0
    """Sampling temperature; 0 is greedy."""
    seed: Seed = 0
    """Seed of the answers."""
    batch_size: PositiveInt | None = None
    """Rows answered together; by default chosen from the rows' lengths and `max_batch_tokens`."""
    max_batch_tokens: PositiveInt = 16_384
    """Prompt and answer tokens that one batch may hold."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number type of its weights while it answers."""

    def local(self) -> TransformersInferenceConfig:
        """As any model on this machine is asked."""
        return TransformersInferenceConfig(backend="transformers", **self.model_dump())
