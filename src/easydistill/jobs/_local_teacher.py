"""A teacher on this machine, through vLLM or transformers, as jobs plan it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from easydistill.config.inference import LocalInferenceConfig
from easydistill.contracts.teacher import Teacher, TeacherPlan
from easydistill.engine.checks import needs_extra
from easydistill.engine.stage import StageContext
from easydistill.errors import ConfigIssue
from easydistill.models.checks import model_issues
from easydistill.models.reference import resolve
from easydistill.models.size import model_parameters


def chosen_backend(inference: LocalInferenceConfig) -> str:
    """The backend that `auto` means on this machine."""
    if inference.backend != "auto":
        return inference.backend
    return "vllm" if importlib.util.find_spec("vllm") is not None else "transformers"


def local_teacher(reference: str, inference: LocalInferenceConfig, student_template: str | None) -> TeacherPlan:
    """How the label stage gets a teacher that runs on this machine.

    `student_template` is `dataset.template`; a teacher without a template of its own takes it too.
    """
    template = student_template if student_template is not None and Path(student_template).is_file() else None
    backend = chosen_backend(inference)

    def make(context: StageContext) -> Teacher:
        if backend == "vllm":
            from easydistill.teachers.vllm import VllmTeacher

            return VllmTeacher(reference, inference, template)
        from easydistill.teachers.transformers import TransformersTeacher

        return TransformersTeacher(reference, inference, template)

    def identity() -> dict[str, Any]:
        return {"backend": backend, **resolve(reference).identity()}

    def preflight() -> list[ConfigIssue]:
        extra = needs_extra("vllm", "vllm") if backend == "vllm" else []
        return extra + needs_extra("train", "torch", "transformers") + model_issues("models.teacher", reference)

    def memory_bytes() -> int | None:
        parameters = model_parameters(reference)
        return None if parameters is None else parameters * (4 if inference.dtype == "float32" else 2)

    return TeacherPlan(make, identity, preflight, memory_bytes)
