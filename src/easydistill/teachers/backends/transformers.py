"""A teacher in this process, through transformers."""

from __future__ import annotations

from easydistill.config.inference import TransformersInferenceConfig, WorkersOptions
from easydistill.contracts.teacher import Teacher, TeacherPlan
from easydistill.engine.stage import StageContext
from easydistill.teachers.backends._local import plan_local, template_file

Config = TransformersInferenceConfig


def plan(config: WorkersOptions, model: str, template: str | None) -> TeacherPlan:
    """`models.teacher`, loaded into this process."""

    def make(context: StageContext) -> Teacher:
        from easydistill.teachers.transformers import TransformersTeacher

        return TransformersTeacher(model, config, template_file(template), date=context.started, images=context.images)

    return plan_local("transformers", config, model, make, template=template_file(template))
