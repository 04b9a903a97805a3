"""Supervised fine-tuning: a student is trained on chats that are given, and no teacher is asked."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from easydistill.config.base import Unfit
from easydistill.config.dataset import DatasetConfig
from easydistill.config.job import JobConfig
from easydistill.config.launch import LaunchConfig
from easydistill.config.models import ModelsConfig
from easydistill.engine.stage import Stage
from easydistill.evaluation.config import EvaluationSection
from easydistill.jobs._black_box import train_and_evaluate
from easydistill.methods.sft.config import TrainingConfig


class Job(JobConfig):
    """The student is trained on the chats of `dataset.labeled_path`. A teacher at `models.teacher` is only compared
    with the student."""

    job_type: Literal["sft"]
    """Which job this is."""
    dataset: DatasetConfig
    models: ModelsConfig
    training: TrainingConfig = TrainingConfig()
    launch: LaunchConfig | None = None
    """Train in several processes."""
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="after")
    def _has_chats(self) -> Job:
        if self.dataset.instruction_path is not None:
            hint = (
                "name rows with answers as dataset.labeled_path, or let a teacher answer: job_type black_box_kd_local "
                "or black_box_kd_api"
            )
            raise Unfit("dataset.instruction_path has prompts, and this job asks nobody to answer them", hint)
        if self.dataset.labeled_path is None:
            raise Unfit("there are no chats to learn from", "set dataset.labeled_path")
        return self


def plan(job: Job) -> list[Stage]:
    """train → evaluate."""
    return train_and_evaluate(job.dataset, job.models, job.training, job.evaluation, labels_by=None)
