"""Config sections of synthesis jobs: models, judge, student sampling, text chunks."""

from __future__ import annotations

import codecs
from typing import ClassVar, Literal

from pydantic import model_validator

from easydistill.config.base import NonEmptyStr, NonNegativeFloat, NonNegativeInt, PositiveInt, Section, Seed, Unfit
from easydistill.config.inference import SamplingConfig, TransformersInferenceConfig
from easydistill.config.models import ModelRef, ModelsConfig


class TeacherModels(Section):
    """The teacher, if it runs on this machine."""

    teacher: ModelRef | None = None
    """The model that writes; not needed with `inference.base_url`."""


class SynthesisModels(TeacherModels):
    """Teacher and judge, if they run on this machine."""

    judge: ModelRef | None = None
    """The model that judges; by default the teacher."""


class ChunksConfig(Section):
    """How raw text is cut into chunks. Token counts are estimates: one token per ideograph, otherwise one per four
    characters."""

    tokens_min: PositiveInt = 800
    """Minimum tokens per chunk; the last chunk of a text may be shorter."""
    tokens_max: PositiveInt = 1500
    """Maximum tokens per chunk."""
    overlap: NonNegativeInt = 100
    """Maximum tokens that a chunk repeats from the previous one."""
    encoding: NonEmptyStr = "utf-8"
    """Encoding of plain text, and of HTML that declares none."""

    @model_validator(mode="after")
    def _in_order(self) -> ChunksConfig:
        if not self.overlap < self.tokens_min <= self.tokens_max:
            raise Unfit(
                f"overlap {self.overlap}, tokens_min {self.tokens_min}, tokens_max {self.tokens_max} are not in order",
                "overlap must be less than tokens_min, and tokens_min at most tokens_max",
            )
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise Unfit(f"unknown encoding {self.encoding!r}", "e.g. utf-8 or gb18030") from None
        return self


class CurriculumModels(ModelsConfig):
    """Teacher, student and judge."""

    judge: ModelRef | None = None
    """The model that judges, if it runs on this machine; by default the teacher."""


class StudentInferenceConfig(SamplingConfig):
    """How the student is sampled: on this machine, through transformers."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"batch_size", "max_batch_tokens"})

    temperature: NonNegativeFloat = 0.0
    """Sampling temperature; 0 is greedy."""
    seed: Seed = 0
    """Sampling seed."""
    batch_size: PositiveInt | None = None
    """Rows per batch; by default chosen from the rows' lengths and `max_batch_tokens`."""
    max_batch_tokens: PositiveInt = 16_384
    """Maximum prompt and answer tokens per batch."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Data type of the weights during inference."""

    def local(self) -> TransformersInferenceConfig:
        """The same settings as the config of a local model."""
        return TransformersInferenceConfig(backend="transformers", **self.model_dump())
