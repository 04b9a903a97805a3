"""What the plans of teachers on this machine share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from easydistill.config.inference import LocalInferenceConfig
from easydistill.contracts.teacher import Teacher, TeacherPlan
from easydistill.data.files import hash_file
from easydistill.engine.checks import missing_file, needs_extra
from easydistill.engine.stage import StageContext
from easydistill.errors import ConfigIssue
from easydistill.models.checks import model_issues
from easydistill.models.reference import resolve
from easydistill.models.size import model_parameters
from easydistill.models.template_files import teacher_shows_date


def plan_local(
    backend: str,
    config: LocalInferenceConfig,
    model: str,
    make: Callable[[StageContext], Teacher],
    extras: Callable[[], list[ConfigIssue]] = list,
    *,
    template: str | None = None,
) -> TeacherPlan:
    """A teacher whose weights are loaded on this machine.

    Args:
        template: the file for a teacher without a template of its own.
        extras: issues for libraries that it needs beside torch and transformers.
    """

    def identity() -> dict[str, Any]:
        return {"backend": backend, **resolve(model).identity(), **template_identity(config)}

    def preflight() -> list[ConfigIssue]:
        needed = extras() + needs_extra("train", "torch", "transformers") + model_issues("models.teacher", model)
        return needed + (missing_file("inference.template", config.template) if config.template else [])

    def memory_bytes() -> int | None:
        parameters = model_parameters(model)
        return None if parameters is None else parameters * (4 if config.dtype == "float32" else 2)

    def shows_date() -> bool:
        return teacher_shows_date(model, config.template, template)

    return TeacherPlan(make, identity, preflight, memory_bytes, shows_date)


def template_identity(config: LocalInferenceConfig) -> dict[str, Any]:
    """What `inference.template` adds to a teacher's identity: the hash of its text, wherever it is."""
    if config.template is None:
        return {}
    path = Path(config.template)
    return {"template": hash_file(path) if path.is_file() else None}


def template_file(template: str | None) -> str | None:
    """The template, if it is a file: a template may also be given by name, which is the student's affair."""
    return template if template is not None and Path(template).is_file() else None
