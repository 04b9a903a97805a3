"""The teacher answers prompts; nothing is trained (the first half of black-box distillation, paper, 2.1.2)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from easydistill.asking.label import LabelStage
from easydistill.config.dataset import SynthesisDatasetConfig
from easydistill.config.job import JobConfig
from easydistill.engine.stage import Stage
from easydistill.jobs._synthesis import asked_model, need_models
from easydistill.synthesis.config import TeacherModels
from easydistill.teachers.sections import Inference


class Job(JobConfig):
    """The teacher answers the prompts of `dataset.instruction_path`."""

    job_type: Literal["label"]
    """Which job this is."""
    dataset: SynthesisDatasetConfig
    inference: Inference = Field(union_mode="left_to_right")
    """How the teacher is asked: a server with `base_url`, else `models.teacher` on this machine."""
    models: TeacherModels = TeacherModels()

    @model_validator(mode="after")
    def _has_a_teacher(self) -> Job:
        need_models(self.inference, self.models.teacher)
        return self


def plan(job: Job) -> list[Stage]:
    """label."""
    return [LabelStage(job.dataset, job.inference, asked_model(job.inference, job.models.teacher).plan)]
