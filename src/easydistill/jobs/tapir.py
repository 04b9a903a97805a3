"""Task-aware curriculum (TAPIR, arXiv 2405.13448): in each round the student is trained on what is hard for it now."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from easydistill.asking.label import LabelStage
from easydistill.config.base import Unfit
from easydistill.config.dataset import DatasetConfig
from easydistill.config.job import JobConfig
from easydistill.config.launch import LaunchConfig
from easydistill.engine.stage import Stage
from easydistill.evaluation.config import EvaluationSection
from easydistill.evaluation.stage import EvaluateStage
from easydistill.jobs._local_student import local_student
from easydistill.jobs._synthesis import asked_models, need_models
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.sft.stage import TrainStage
from easydistill.methods.shared.rows import LabelledRows
from easydistill.methods.shared.sight import blindness
from easydistill.synthesis.config import CurriculumModels, StudentInferenceConfig
from easydistill.synthesis.curriculum import CurriculumStage, RoundRows
from easydistill.synthesis.operators import tapir
from easydistill.teachers.sections import Inference, JudgeConfig


class Job(JobConfig):
    """Rounds of examination and training; the teacher is `models.teacher`, or a server at `inference.base_url`."""

    job_type: Literal["tapir"]
    """Which job this is."""
    dataset: DatasetConfig
    inference: Inference = Field(union_mode="left_to_right")
    """How the teacher is asked: a server with `base_url`, else `models.teacher` on this machine."""
    judge: JudgeConfig | None = None
    """How the judge is asked; by default the teacher judges, with its own settings."""
    models: CurriculumModels
    student_inference: StudentInferenceConfig = StudentInferenceConfig()
    curriculum: tapir.Config = tapir.Config()
    training: TrainingConfig = TrainingConfig()
    """Training in each round."""
    launch: LaunchConfig | None = None
    """Train in several processes."""
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="after")
    def _fits_together(self) -> Job:
        need_models(self.inference, self.models.teacher, self.judge, self.models.judge)
        if self.dataset.instruction_path is None and self.dataset.labeled_path is None:
            raise Unfit("there are no prompts", "set dataset.instruction_path, or dataset.labeled_path")
        return self


def plan(job: Job) -> list[Stage]:
    """label (if prompts are given) → curriculum-1 → train-1 → curriculum-2 → … → evaluate."""
    asked = asked_models(job.inference, job.models.teacher, job.judge, job.models.judge)
    prompts_given = job.dataset.instruction_path is not None
    rows = LabelledRows(job.dataset, job.evaluation, prompts_given, shown_to=job.models)
    apart = job.inference.thoughts == "apart"
    stages: list[Stage] = []
    if prompts_given:
        stages.append(
            LabelStage(job.dataset, job.inference, asked["teacher"].plan, unseen=lambda: blindness(job.models))
        )
    trained: str | None = None
    for number in range(1, job.curriculum.rounds + 1):
        student = local_student(job.models, job.student_inference, job.dataset, trained)
        stages.append(CurriculumStage(number, job.curriculum, rows, {**asked, "student": student}, trained))
        round_rows = RoundRows(
            job.dataset, job.evaluation, prompts_given, number, awaits_thoughts=apart, shown_to=job.models
        )
        stage = TrainStage(round_rows, job.models, job.training, name=f"train-{number}", start=trained)
        stages.append(stage)
        trained = stage.name
    if job.evaluation.enabled:
        assert trained is not None, "there is at least one round"
        stages.append(
            EvaluateStage(
                rows,
                job.models,
                job.evaluation,
                job.training.max_length,
                trained=trained,
                device_map=getattr(job.inference, "device_map", None),
            )
        )
    return stages
