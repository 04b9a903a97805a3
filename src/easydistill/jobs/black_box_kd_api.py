"""Black-box distillation from a teacher behind an OpenAI-compatible API (paper, Code 1)."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from easydistill.asking.label import LabelStage
from easydistill.config.base import Unfit
from easydistill.config.dataset import DatasetConfig
from easydistill.config.job import JobConfig
from easydistill.config.launch import LaunchConfig
from easydistill.config.models import ModelsConfig
from easydistill.engine.stage import Stage
from easydistill.evaluation.config import EvaluationSection
from easydistill.jobs._black_box import train_and_evaluate
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.sight import blindness
from easydistill.teachers import plan_teacher
from easydistill.teachers.sections import ServedInference


class Job(JobConfig):
    """The teacher at `inference.base_url` answers `dataset.instruction_path`; the student is trained on its answers."""

    job_type: Literal["black_box_kd_api"]
    """Which job this is."""
    dataset: DatasetConfig
    inference: ServedInference | None = None
    """How the teacher is asked. Without it, the job trains on `dataset.labeled_path`."""
    models: ModelsConfig
    training: TrainingConfig = TrainingConfig()
    launch: LaunchConfig | None = None
    """Train in several processes."""
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="after")
    def _has_rows(self) -> Job:
        if self.inference is not None and self.dataset.instruction_path is None:
            hint = "set dataset.instruction_path, or drop `inference` to train on dataset.labeled_path"
            raise Unfit("the teacher has no prompts", hint)
        if self.inference is None and self.dataset.labeled_path is None:
            raise Unfit("there is no teacher and no labelled data", "set inference.base_url, or dataset.labeled_path")
        return self


def plan(job: Job) -> list[Stage]:
    """label (unless only `labeled_path` is given) → train → evaluate."""
    after = train_and_evaluate(job.dataset, job.models, job.training, job.evaluation, labels_by=job.inference)
    if job.inference is None:
        return after
    return [
        LabelStage(job.dataset, job.inference, plan_teacher(job.inference, None), unseen=lambda: blindness(job.models)),
        *after,
    ]
