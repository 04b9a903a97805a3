"""The student as a model that answers requests, in its initial state or as trained by an earlier stage."""

from __future__ import annotations

from functools import partial
from typing import Any

from easydistill.asking.model import AskedModel
from easydistill.config.models import ModelsConfig
from easydistill.contracts.teacher import Teacher, TeacherPlan
from easydistill.engine.checks import needs_extra
from easydistill.engine.stage import StageContext
from easydistill.errors import ConfigIssue
from easydistill.methods.shared.rendering import TemplateSettings, template_identity, template_shows_date
from easydistill.methods.shared.sight import sees_images
from easydistill.methods.shared.student import student_of_stage
from easydistill.models.checks import student_issues
from easydistill.models.size import student_parameters
from easydistill.models.student import Student, check_student, student_identity, student_references
from easydistill.models.template_files import model_shows_date
from easydistill.synthesis.config import StudentInferenceConfig


def local_student(
    models: ModelsConfig,
    settings: StudentInferenceConfig,
    chats: TemplateSettings | None = None,
    trained: str | None = None,
) -> AskedModel:
    """The student as a stage asks it, through transformers.

    Args:
        chats: the `dataset` section: its template replaces the student's own, and its variables are given to it.
        trained: the train stage that the student comes from; None for its initial state.
    """
    settled = settings.local()
    inference = settled
    if chats is not None:
        # Not part of its sampling: `rendering` identifies them.
        given = {"template": chats.template, "chat_template_kwargs": dict(chats.template_kwargs or {})}
        inference = settled.model_copy(update=given)

    def rendering() -> dict[str, Any]:
        return {} if chats is None else {name: value for name, value in template_identity(chats).items() if value}

    def make(context: StageContext) -> Teacher:
        from easydistill.models.loading import choose_dtype, device
        from easydistill.models.student import build_student
        from easydistill.teachers.transformers import TransformersTeacher

        current = student_of_stage(models, trained, context)
        identity = {**student_identity(current), **rendering()}

        def build() -> Student:
            return build_student(current, choose_dtype(inference.dtype, device()))

        return TransformersTeacher("student", inference, None, build, identity, context.started, context.images)

    def identity() -> dict[str, Any]:
        # A trained student's weights are an input of the stage that asks it, so the runner notices when they change.
        weights = student_identity(models) if trained is None else {"stage": trained}
        return {"backend": "transformers", **weights, **rendering()}

    def preflight() -> list[ConfigIssue]:
        return (
            student_issues(models) + check_student(models) + needs_extra("train", "torch", "transformers", "accelerate")
        )

    def memory_bytes() -> int | None:
        parameters = student_parameters(models)
        return None if parameters is None else parameters * (4 if inference.dtype == "float32" else 2)

    def shows_date() -> bool:
        if chats is not None:
            return template_shows_date(chats, student_references(models))
        return any(map(model_shows_date, student_references(models)))

    plan = TeacherPlan(make, identity, preflight, memory_bytes, shows_date, sees_images=partial(sees_images, models))
    return AskedModel(plan, settled)
