"""Black-box distillation from a teacher on this machine, through vLLM or transformers (paper, Code 2)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from easydistill.config.base import Unfit
from easydistill.config.evaluation import EvaluationConfig
from easydistill.config.inference import LocalInferenceConfig
from easydistill.config.job import JobConfig
from easydistill.config.models import ModelsConfig
from easydistill.config.training import TrainingConfig
from easydistill.engine.stage import Stage, StageContext
from easydistill.errors import ConfigIssue
from easydistill.jobs._black_box import train_and_evaluate
from easydistill.models.reference import resolve
from easydistill.models.size import model_parameters
from easydistill.stages.checks import model_issues, needs_extra
from easydistill.stages.label import LabelStage, TeacherPlan
from easydistill.teachers.base import Teacher


class Job(JobConfig):
    """`models.teacher` answers `dataset.instruction_path`; the student learns its answers."""

    job_type: Literal["black_box_kd_local"]
    """Which job this is."""
    inference: LocalInferenceConfig = LocalInferenceConfig()
    models: ModelsConfig
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def labels(self) -> bool:
        """Whether the teacher has anything to answer; if not, the job trains on `labeled_path`."""
        return self.models.teacher is not None and self.dataset.instruction_path is not None

    @model_validator(mode="after")
    def _has_rows(self) -> Job:
        if self.labels or self.dataset.labeled_path is not None:
            return self
        if self.models.teacher is None:
            raise Unfit("there is no teacher and nothing labelled", "set models.teacher, or dataset.labeled_path")
        raise Unfit("the teacher has no prompts", "set dataset.instruction_path")


def plan(job: Job) -> list[Stage]:
    """label (unless only `labeled_path` is given) → train → evaluate."""
    after = train_and_evaluate(job.dataset, job.models, job.training, job.evaluation, labels_from_stage=job.labels)
    if not job.labels:
        return after
    return [LabelStage(job.dataset, job.inference, _teacher(job)), *after]


def chosen_backend(inference: LocalInferenceConfig) -> str:
    """The backend that `auto` means on this machine."""
    if inference.backend != "auto":
        return inference.backend
    return "vllm" if importlib.util.find_spec("vllm") is not None else "transformers"


def _teacher(job: Job) -> TeacherPlan:
    reference, inference = job.models.teacher, job.inference
    assert reference is not None
    backend = chosen_backend(inference)

    def make(context: StageContext) -> Teacher:
        if backend == "vllm":
            from easydistill.teachers.vllm import VllmTeacher

            return VllmTeacher(reference, inference, _template(job))
        from easydistill.teachers.transformers import TransformersTeacher

        return TransformersTeacher(reference, inference, _template(job))

    def identity() -> dict[str, Any]:
        return {"backend": backend, **resolve(reference).identity()}

    def preflight() -> list[ConfigIssue]:
        extra = needs_extra("vllm", "vllm") if backend == "vllm" else []
        return extra + needs_extra("train", "torch", "transformers") + model_issues("models.teacher", reference)

    def memory_bytes() -> int | None:
        parameters = model_parameters(reference)
        return None if parameters is None else parameters * (4 if inference.dtype == "float32" else 2)

    return TeacherPlan(make, identity, preflight, memory_bytes)


def _template(job: Job) -> str | None:
    """`dataset.template` is the student's; a teacher without a template of its own takes it too."""
    template = job.dataset.template
    return template if template is not None and Path(template).is_file() else None
