"""Whether a student sees images, found in its config before anything is loaded, and what becomes of rows with some."""

from __future__ import annotations

import json

from easydistill.config.models import FreshStudent, ModelsConfig
from easydistill.errors import ModelError
from easydistill.models.reference import resolve
from easydistill.models.student import student_references

TRAINS_ON_TEXT = "this job trains on text alone and would not see it: remove the row, or take another job"
"""Of rows with images, in jobs that show them to no student."""
_TOWER = "vision_config"
"""Key of a model's config that only models with a vision tower have."""


def sees_images(models: ModelsConfig) -> bool:
    """Whether a student is a vision-language model, according to its config.json. One that is not on this machine yet
    does not count as one."""
    if isinstance(models.student, FreshStudent):
        return _TOWER in models.student.config
    try:
        (source,) = (resolve(reference) for reference in student_references(models))
        if source.path is None or source.is_gguf:
            return False
        return _TOWER in json.loads((source.path / "config.json").read_text(encoding="utf-8"))
    except (ModelError, OSError, ValueError, TypeError):
        # Told by other checks.
        return False


def blindness(models: ModelsConfig | None) -> str | None:
    """Why rows with images are refused, in words for users; None if the student sees them.

    Args:
        models: the student; None in jobs that show images to none.
    """
    if models is None:
        return TRAINS_ON_TEXT
    if sees_images(models):
        return None
    (reference,) = student_references(models) or ["it"]
    return (
        f"the student ({reference}) reads text alone and would not see it: take a vision-language model as "
        "the student, label such rows in the job `label`, or remove them"
    )
