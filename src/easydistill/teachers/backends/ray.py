"""A teacher in the actors of a Ray cluster."""

from __future__ import annotations

import importlib.util
from typing import Any

from easydistill.config.inference import RayInferenceConfig
from easydistill.contracts.teacher import Teacher, TeacherPlan
from easydistill.engine.checks import needs_extra
from easydistill.engine.stage import StageContext
from easydistill.errors import ConfigIssue
from easydistill.models.template_files import teacher_shows_date
from easydistill.teachers.backends._local import local_identity, local_issues, template_file, weight_bytes
from easydistill.teachers.pool.local import spec_of
from easydistill.teachers.pool.messages import Engine

Config = RayInferenceConfig


def plan(config: RayInferenceConfig, model: str, template: str | None) -> TeacherPlan:
    """`models.teacher`, in actors. It is known by the engine, so its answers are those of the other backends."""
    given = template_file(template)
    engine = _engine(config)

    def make(context: StageContext) -> Teacher:
        from easydistill.teachers.pool.ray import RayCrew
        from easydistill.teachers.pool.teacher import PooledTeacher

        spec = spec_of(engine, model, config, given, context)
        crew = RayCrew(spec, config, context.directory / "workers", context.reporter.say)
        return PooledTeacher(crew, identity, context, streams=engine == "vllm", most=config.chunk_size)

    def identity() -> dict[str, Any]:
        return local_identity(engine, config, model)

    def preflight() -> list[ConfigIssue]:
        # In a running cluster, its nodes need what the engine needs.
        extra = needs_extra("vllm", "vllm") if engine == "vllm" and config.address is None else []
        return local_issues(config, model, needs_extra("ray", "ray") + extra) + _too_few_gpus(config)

    def memory_bytes() -> int | None:
        weights = weight_bytes(config, model)
        if weights is None or config.address is not None:
            return None
        return weights * (1 if config.num_actors == "auto" else config.num_actors)

    def shows_date() -> bool:
        return teacher_shows_date(model, config.template, given)

    return TeacherPlan(make, identity, preflight, memory_bytes, shows_date, lambda: [_words(config, engine)])


def _engine(config: RayInferenceConfig) -> Engine:
    if config.engine != "auto":
        return config.engine
    return "transformers" if importlib.util.find_spec("vllm") is None else "vllm"


def _too_few_gpus(config: RayInferenceConfig) -> list[ConfigIssue]:
    """An issue if a cluster of this machine alone will never have the GPUs."""
    if config.address is not None or not config.num_gpus:
        return []
    from easydistill.models.spread import visible_gpus

    count = 1 if config.num_actors == "auto" else config.num_actors
    needed, found = config.num_gpus * count, len(visible_gpus())
    if needed <= found:
        return []
    problem = f"{count} actor{'s' if count > 1 else ''} need {needed:g} GPUs, and this machine has {found}"
    hint = "lower num_gpus or num_actors, or name a cluster with inference.address"
    return [ConfigIssue("this machine", "inference.num_gpus", problem, hint)]


def _words(config: RayInferenceConfig, engine: Engine) -> str:
    where = "a Ray cluster of this machine" if config.address is None else f"the Ray cluster at {config.address}"
    if config.num_actors == "auto":
        return f"the teacher answers in as many actors ({engine}) as there are GPUs for, in {where}"
    return (
        f"the teacher answers in {config.num_actors} actor{'s' if config.num_actors > 1 else ''} ({engine}) of {where}"
    )
