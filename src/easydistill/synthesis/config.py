"""Sections of synthesis jobs: who is asked, how raw text is cut."""

from __future__ import annotations

import codecs
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from easydistill.config.base import NonEmptyStr, NonNegativeFloat, NonNegativeInt, PositiveInt, Section, Seed, Unfit
from easydistill.config.inference import Inference, LocalInferenceConfig, SamplingConfig
from easydistill.config.models import ModelRef, ModelsConfig


class TeacherModels(Section):
    """The model that writes, where it runs on this machine."""

    teacher: ModelRef | None = None
    """The model that writes; not needed with `inference.base_url`."""


class SynthesisModels(TeacherModels):
    """Models that run on this machine."""

    judge: ModelRef | None = None
    """The model that judges; by default the teacher."""


class JudgeConfig(Section):
    """Another model, or other sampling, for whatever judges."""

    inference: Inference = Field(default=LocalInferenceConfig(temperature=0.0))
    """How the judge is asked."""


class ChunksConfig(Section):
    """How raw text is cut. Tokens are estimated: an ideograph a token, else four characters a token."""

    tokens_min: PositiveInt = 800
    """Tokens that a chunk should have; a text's last chunk may be shorter."""
    tokens_max: PositiveInt = 1500
    """Tokens that a chunk may have."""
    overlap: NonNegativeInt = 100
    """Most tokens that a chunk repeats of the one before."""
    encoding: NonEmptyStr = "utf-8"
    """Of plain text, and of HTML that does not name its own."""

    @model_validator(mode="after")
    def _in_order(self) -> ChunksConfig:
        if not self.overlap < self.tokens_min <= self.tokens_max:
            raise Unfit(
                f"overlap {self.overlap}, tokens_min {self.tokens_min}, tokens_max {self.tokens_max} are not in order",
                "make overlap less than tokens_min, and tokens_min at most tokens_max",
            )
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise Unfit(f"there is no encoding {self.encoding!r}", "e.g. utf-8 or gb18030") from None
        return self


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

    def local(self) -> LocalInferenceConfig:
        """As any model on this machine is asked."""
        return LocalInferenceConfig(backend="transformers", **self.model_dump())
