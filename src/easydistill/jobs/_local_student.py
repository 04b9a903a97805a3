"""The student as somebody who is asked, as jobs plan it: as it is made, or as a train stage left it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from easydistill.config.inference import LocalInferenceConfig
from easydistill.config.models import ModelsConfig
from easydistill.contracts.teacher import Teacher, TeacherPlan
from easydistill.data.files import hash_file
from easydistill.engine.checks import needs_extra
from easydistill.engine.stage import StageContext
from easydistill.errors import ConfigIssue
from easydistill.methods.shared.student import student_of_stage
from easydistill.models.checks import student_issues
from easydistill.models.size import student_parameters
from easydistill.models.student import check_student, student_identity


def local_student(
    models: ModelsConfig, inference: LocalInferenceConfig, template: str | None, trained: str | None
) -> TeacherPlan:
    """How a stage gets the student's answers, through transformers.

    Args:
        template: `dataset.template`, which replaces the student's own.
        trained: the train stage that it comes from; by default it is as it is made.
    """

    def framed() -> dict[str, Any]:
        return {"template": hash_file(Path(template))} if template is not None else {}

    def make(context: StageContext) -> Teacher:
        from easydistill.models.loading import choose_dtype, device
        from easydistill.models.student import build_student
        from easydistill.teachers.transformers import TransformersTeacher

        now = student_of_stage(models, trained, context)

        def build() -> tuple[Any, Any]:
            made = build_student(now, choose_dtype(inference.dtype, device()))
            if template is not None:
                made.tokenizer.chat_template = None
            return made.model, made.tokenizer

        return TransformersTeacher("student", inference, template, build, {**student_identity(now), **framed()})

    def identity() -> dict[str, Any]:
        # A trained student's weights are an input of the stage that asks it: the runner sees them change.
        weights = student_identity(models) if trained is None else {"stage": trained}
        return {"backend": "transformers", **weights, **framed()}

    def preflight() -> list[ConfigIssue]:
        return (
            student_issues(models) + check_student(models) + needs_extra("train", "torch", "transformers", "accelerate")
        )

    def memory_bytes() -> int | None:
        parameters = student_parameters(models)
        return None if parameters is None else parameters * (4 if inference.dtype == "float32" else 2)

    return TeacherPlan(make, identity, preflight, memory_bytes)
