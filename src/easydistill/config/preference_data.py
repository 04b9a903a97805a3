"""Sections of `preference_data`: which models answer and judge, and how the student is sampled."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from easydistill.config.base import NonNegativeFloat
from easydistill.config.curriculum import StudentInferenceConfig
from easydistill.config.inference import ApiInferenceConfig
from easydistill.config.models import ModelsConfig, StudentRef
from easydistill.config.synthesis import SynthesisModels


class PairModels(SynthesisModels):
    """Teacher, judge and student, those of them that run on this machine."""

    student: StudentRef | None = None
    """The model whose answers are sampled: a model, `{"from": …, "keep_layers": n}` or `{"config": {…}}`."""
    trust_remote_code: bool = False
    """Run code that comes with the student's weights."""

    def with_student(self) -> ModelsConfig:
        """As jobs have them that make a student."""
        assert self.student is not None
        return ModelsConfig(teacher=self.teacher, student=self.student, trust_remote_code=self.trust_remote_code)


class StudentSamplesConfig(StudentInferenceConfig):
    """How the student is sampled on this machine, through transformers."""

    temperature: NonNegativeFloat = 1.0
    """Sampling temperature; 1 draws from the student's own distribution."""


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "server" if "base_url" in value else "local"
    return "server" if isinstance(value, ApiInferenceConfig) else "local"


StudentSamples = Annotated[
    Annotated[StudentSamplesConfig, Tag("local")] | Annotated[ApiInferenceConfig, Tag("server")],
    Discriminator(_kind),
]
"""A server where `base_url` is given, else `models.student` on this machine."""
