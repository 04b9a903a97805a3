"""From a config file, its overrides and the environment to one typed, immutable job config."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from easydistill.config.aliases import JOB_TYPE_ALIASES, apply_aliases
from easydistill.config.diagnose import closest, explain
from easydistill.config.environment import resolve_environment
from easydistill.config.job import JobConfig
from easydistill.config.overrides import WHERE, apply_overrides
from easydistill.config.syntax import Document, KeyPath, parse_file
from easydistill.errors import ConfigError, ConfigIssue


@dataclass(frozen=True)
class LoadedConfig:
    """A valid config and what it was made from."""

    job: JobConfig
    name: str
    """The file's name without suffix; names the default run directory."""
    source: dict[str, Any]
    """As written: before aliases, overrides and the environment."""
    path: Path | None
    overrides: tuple[str, ...] = ()

    @property
    def run_directory(self) -> Path:
        return self.job.run_directory(self.name)


def load_config(
    source: str | Path | Mapping[str, Any],
    job_classes: Callable[[], Mapping[str, type[JobConfig]]],
    overrides: Sequence[str] = (),
) -> LoadedConfig:
    """Read and validate a config.

    Args:
        source: a file's path, or the config itself as a mapping.
        job_classes: gives the config class of each job type.
        overrides: `dotted.path=value`, applied in order over the file.

    Raises:
        ConfigError: anything is wrong; it lists every issue that can be told at once.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        document, name = parse_file(path), path.stem
    else:
        path, name = None, "config"
        document = Document("config", json.loads(json.dumps(source)))
    written = json.loads(json.dumps(document.data, default=str))
    overridden = apply_overrides(document, list(overrides))
    issues = apply_aliases(document) + resolve_environment(document)
    classes = job_classes()
    job_class = _job_class(document, classes, overridden, issues)
    try:
        job = job_class.model_validate(document.data)
    except ValidationError as error:
        others = {job_type: cls for job_type, cls in classes.items() if cls is not job_class}
        raise ConfigError(issues + explain(error, document, job_class, overridden, others)) from None
    if issues:
        raise ConfigError(issues)
    return LoadedConfig(job, name, written, path, tuple(overrides))


def _job_class(
    document: Document,
    classes: Mapping[str, type[JobConfig]],
    overridden: set[KeyPath],
    issues: list[ConfigIssue],
) -> type[JobConfig]:
    job_type = document.data.get("job_type")
    if isinstance(job_type, str) and job_type in classes:
        return classes[job_type]
    where = WHERE if ("job_type",) in overridden else document.where(("job_type",))
    known = ", ".join(sorted(classes))
    if job_type is None:
        guess = closest("job_type", document.data)
        mend = f'"job_type": … with one of {known}' + (f" (is {guess!r} meant to be it?)" if guess else "")
        problem = "this key is missing"
    elif not isinstance(job_type, str):
        problem, mend = f"text is needed here, not {json.dumps(job_type)[:60]}", f"use one of {known}"
    else:
        candidate = closest(job_type, [*classes, *JOB_TYPE_ALIASES])
        problem = f'there is no job type "{job_type}"'
        mend = f'did you mean "{candidate}"? Known are {known}' if candidate else f"use one of {known}"
        if candidate:
            # Judge the sections by the job the user probably means, so that all errors show at once.
            meant = JOB_TYPE_ALIASES.get(candidate, candidate)
            document.data["job_type"] = meant
            issues.insert(0, ConfigIssue(where, "job_type", problem, mend))
            return classes[meant]
    raise ConfigError([ConfigIssue(where, "job_type", problem, mend), *issues])
