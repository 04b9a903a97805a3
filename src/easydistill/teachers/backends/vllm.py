"""A teacher in vLLM's engine, on this machine."""

from __future__ import annotations

from easydistill.config.inference import VllmInferenceConfig, WorkersOptions
from easydistill.contracts.teacher import Teacher, TeacherPlan
from easydistill.engine.checks import needs_extra
from easydistill.engine.stage import StageContext
from easydistill.errors import ConfigIssue
from easydistill.teachers.backends._local import plan_local, template_file
from easydistill.teachers.replicas.devices import replica_issues

Config = VllmInferenceConfig


def plan(config: WorkersOptions, model: str, template: str | None) -> TeacherPlan:
    """`models.teacher`, in vLLM: in this process, in workers of this machine, or in servers."""

    def make(context: StageContext) -> Teacher:
        if config.replicas is not None:
            from easydistill.teachers.replicas.teacher import ReplicaTeacher

            say, file = context.reporter.say, template_file(template)
            return ReplicaTeacher(model, config, context.directory, say, context.redactor, file, context.started)
        from easydistill.teachers.vllm import VllmTeacher

        return VllmTeacher(model, config, template_file(template), date=context.started, images=context.images)

    def extras() -> list[ConfigIssue]:
        return needs_extra("vllm", "vllm") + replica_issues(config)

    return plan_local("vllm", config, model, make, extras, template=template_file(template))
