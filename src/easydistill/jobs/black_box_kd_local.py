"""Black-box distillation from a teacher on this machine, through vLLM or transformers (paper, Code 2)."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from easydistill.asking.label import LabelStage
from easydistill.config.base import Unfit
from easydistill.config.dataset import DatasetConfig
from easydistill.config.inference import AutoInferenceConfig
from easydistill.config.job import JobConfig
from easydistill.config.launch import LaunchConfig
from easydistill.config.models import ModelsConfig
from easydistill.engine.stage import Stage
from easydistill.evaluation.config import EvaluationSection
from easydistill.jobs._black_box import train_and_evaluate
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.sight import blindness
from easydistill.teachers import plan_teacher
from easydistill.teachers.sections import LocalInference


class Job(JobConfig):
    """`models.teacher` answers `dataset.instruction_path`; the student is trained on its answers."""

    job_type: Literal["black_box_kd_local"]
    """Which job this is."""
    dataset: DatasetConfig
    inference: LocalInference = AutoInferenceConfig()
    """How the teacher is asked, on this machine."""
    models: ModelsConfig
    training: TrainingConfig = TrainingConfig()
    launch: LaunchConfig | None = None
    """Train in several processes."""
    evaluation: EvaluationSection = EvaluationSection()

    @property
    def labels(self) -> bool:
        """Whether the teacher answers prompts; if not, the job trains on `labeled_path`."""
        return self.models.teacher is not None and self.dataset.instruction_path is not None

    @model_validator(mode="after")
    def _has_rows(self) -> Job:
        if self.labels or self.dataset.labeled_path is not None:
            return self
        if self.models.teacher is None:
            raise Unfit("there is no teacher and no labelled data", "set models.teacher, or dataset.labeled_path")
        raise Unfit("the teacher has no prompts", "set dataset.instruction_path")


def plan(job: Job) -> list[Stage]:
    """label (unless only `labeled_path` is given) → train → evaluate."""
    labels_by = job.inference if job.labels else None
    spread = getattr(job.inference, "device_map", None)
    after = train_and_evaluate(
        job.dataset, job.models, job.training, job.evaluation, labels_by=labels_by, device_map=spread
    )
    if not job.labels:
        return after
    assert job.models.teacher is not None
    teacher = plan_teacher(job.inference, job.models.teacher, job.dataset.template)
    return [LabelStage(job.dataset, job.inference, teacher, unseen=lambda: blindness(job.models)), *after]
