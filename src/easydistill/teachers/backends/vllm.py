"""A teacher in vLLM's engine, on this machine."""

from __future__ import annotations

from easydistill.config.inference import VllmInferenceConfig, WorkersOptions
from easydistill.contracts.teacher import Teacher, TeacherPlan
from easydistill.engine.checks import needs_extra
from easydistill.engine.stage import StageContext
from easydistill.teachers.backends._local import plan_local, template_file

Config = VllmInferenceConfig


def plan(config: WorkersOptions, model: str, template: str | None) -> TeacherPlan:
    """`models.teacher`, in vLLM."""

    def make(context: StageContext) -> Teacher:
        from easydistill.teachers.vllm import VllmTeacher

        return VllmTeacher(model, config, template_file(template), date=context.started)

    return plan_local(
        "vllm", config, model, make, lambda: needs_extra("vllm", "vllm"), template=template_file(template)
    )
