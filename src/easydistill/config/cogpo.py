"""Sections of the `cogpo` job: its rows, how the student is sampled, fine-tuning before the pairs."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from easydistill.config.base import NonEmptyStr, PositiveFloat, PositiveInt, Share, Unfit
from easydistill.config.curriculum import StudentInferenceConfig
from easydistill.config.dataset import DatasetConfig
from easydistill.config.training import TrainingConfig


class CogpoDatasetConfig(DatasetConfig):
    """Problems, or pairs that are there already."""

    instruction_path: NonEmptyStr | None = None
    """Problems with known final answers: in the row's own answer, or in a field `reference`, `final_answer` or
    `solution`. A row's own answer is the teacher's chain of thought, unless `synthesis.use_outputs` is off."""
    labeled_path: NonEmptyStr | None = None
    """With problems: where pairs are written too. Without: pairs to train on, rows with `prompt`, `chosen`, `rejected`
    and `beta`."""
    max_samples: PositiveInt | None = None
    """Use only the first so many problems, or pairs where there are no problems."""
    max_rejected_share: Share = 1.0
    """A run whose rejected rows exceed this share of all rows ends with exit code 3."""


class TriesInferenceConfig(StudentInferenceConfig):
    """How the student's several answers to a problem are drawn: on this machine, through transformers."""

    temperature: PositiveFloat = 0.8
    """Sampling temperature."""


class TuningConfig(TrainingConfig):
    """Supervised fine-tuning on the chains that suit the student, before it learns from pairs."""

    runtime_only: ClassVar[frozenset[str]] = TrainingConfig.runtime_only | {"enabled"}

    enabled: bool = True
    """Fine-tune first. The student that comes of it is the reference of the pairs' loss."""

    @model_validator(mode="after")
    def _has_no_directory(self) -> TuningConfig:
        if self.output_dir is not None:
            raise Unfit("the run directory is named elsewhere", "use output_dir at the top")
        return self
