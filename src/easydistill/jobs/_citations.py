"""Citations of a pipeline's jobs: putting values in their place, and what is known before they exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from easydistill.config.job import JobConfig
from easydistill.config.models import FreshStudent
from easydistill.config.pipeline import Citation
from easydistill.config.values import KeyPath


def values_of(job: BaseModel) -> dict[str, Any]:
    """A config's explicitly set values in their serialised form, including secrets."""
    return job.model_dump(by_alias=True, exclude_unset=True)


@dataclass(frozen=True)
class Resolved:
    """A job with its citations replaced by paths."""

    job: JobConfig
    waits_for: tuple[str, ...]
    """Cited jobs whose artifacts do not exist yet; these citations are left as written."""
    unresolved: tuple[KeyPath, ...]


def untrained(citation: Citation, jobs: Mapping[str, JobConfig]) -> Any:
    """The student that a cited job trains, as its config describes it; None if its chat template will be another."""
    job: Any = jobs[citation.job]
    student = getattr(getattr(job, "models", None), "student", None)
    template = getattr(getattr(job, "dataset", None), "template", None)
    # The tokenizer of one with random weights may be that of a teacher.
    if citation.artifact != "student" or student is None or template is not None or isinstance(student, FreshStudent):
        return None
    if isinstance(student, BaseModel):
        return values_of(student)
    cited = Citation.read(student)
    return student if cited is None else untrained(cited, jobs)


def concerns(key: str, cited: set[str]) -> bool:
    """Whether an issue is about a value that is not known yet."""
    return any(key == path or path.startswith(f"{key}.") or key.startswith(f"{path}.") for path in cited)


def replaced(value: Any, by_path: Mapping[KeyPath, Any], path: KeyPath = ()) -> Any:
    """A config's values with others at some paths."""
    if path in by_path:
        return by_path[path]
    if isinstance(value, Mapping):
        return {key: replaced(item, by_path, (*path, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replaced(item, by_path, (*path, index)) for index, item in enumerate(value)]
    return value
