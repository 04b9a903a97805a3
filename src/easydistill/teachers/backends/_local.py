"""What the plans of teachers on this machine share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from easydistill.config.inference import LocalInferenceConfig, WorkersOptions
from easydistill.contracts.teacher import Teacher, TeacherPlan
from easydistill.data.files import hash_file
from easydistill.engine.checks import missing_file, needs_extra
from easydistill.engine.stage import StageContext
from easydistill.errors import ConfigIssue
from easydistill.models.checks import model_issues
from easydistill.models.reference import resolve, sees_images
from easydistill.models.size import model_parameters
from easydistill.models.template_files import teacher_shows_date
from easydistill.teachers.pool.local import local_pool, spec_of, worker_count, worker_issues, worker_notes
from easydistill.teachers.pool.messages import Engine


def plan_local(
    engine: Engine,
    config: WorkersOptions,
    model: str,
    make: Callable[[StageContext], Teacher],
    extras: Callable[[], list[ConfigIssue]] = list,
    *,
    template: str | None = None,
) -> TeacherPlan:
    """A teacher on this machine: in this process, or in workers.

    Args:
        make: the teacher in this process.
        template: the file for a teacher without a template of its own.
        extras: issues for libraries that it needs beside torch and transformers.
    """

    def identity() -> dict[str, Any]:
        return local_identity(engine, config, model)

    def made(context: StageContext) -> Teacher:
        if config.workers is None:
            return make(context)
        return local_pool(spec_of(engine, model, config, template, context), config, identity, context)

    def preflight() -> list[ConfigIssue]:
        return local_issues(config, model, extras()) + worker_issues(engine, config)

    def memory_bytes() -> int | None:
        weights = weight_bytes(config, model)
        return None if weights is None else weights * worker_count(engine, config)

    def shows_date() -> bool:
        return teacher_shows_date(model, config.template, template)

    def notes() -> list[str]:
        return worker_notes(engine, config, weight_bytes(config, model))

    def sees() -> bool:
        # Servers of `replicas` are sent tokens alone.
        return config.replicas is None and sees_images(model)

    return TeacherPlan(made, identity, preflight, memory_bytes, shows_date, notes, sees)


def local_identity(engine: Engine, config: LocalInferenceConfig, model: str) -> dict[str, Any]:
    """Identifies a teacher whose weights are read from files, wherever it runs."""
    return {"backend": engine, **resolve(model).identity(), **template_identity(config)}


def local_issues(config: LocalInferenceConfig, model: str, extras: list[ConfigIssue]) -> list[ConfigIssue]:
    """What is missing on this machine: libraries, the model, the template."""
    needed = extras + needs_extra("train", "torch", "transformers") + model_issues("models.teacher", model)
    needed += _blind_issues(config, model)
    return needed + (missing_file("inference.template", config.template) if config.template else [])


def _blind_issues(config: LocalInferenceConfig, model: str) -> list[ConfigIssue]:
    """An issue if a model of text on this machine is to be shown images."""
    if config.image is None or sees_images(model) or resolve(model).path is None:
        return []
    problem = f"{model} reads text alone, so nothing decides how it is shown images"
    return [ConfigIssue("config", "inference.image", problem, "remove it, or take a vision-language model")]


def weight_bytes(config: LocalInferenceConfig, model: str) -> int | None:
    """Memory that one copy of the weights needs; None if the size is unknown."""
    parameters = model_parameters(model)
    return None if parameters is None else parameters * (4 if config.dtype == "float32" else 2)


def template_identity(config: LocalInferenceConfig) -> dict[str, Any]:
    """What `inference.template` adds to a teacher's identity: the hash of its text, wherever it is."""
    if config.template is None:
        return {}
    path = Path(config.template)
    return {"template": hash_file(path) if path.is_file() else None}


def template_file(template: str | None) -> str | None:
    """The template, if it is a file: a template may also be given by name, which is the student's affair."""
    return template if template is not None and Path(template).is_file() else None
