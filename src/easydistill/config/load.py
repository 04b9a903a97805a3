"""From a config file, its overrides and the environment to one typed, immutable job config."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from easydistill.config.aliases import JOB_TYPE_ALIASES, SEVERAL_JOBS, apply_aliases
from easydistill.config.diagnose import closest, explain
from easydistill.config.document import Document, KeyPath, show
from easydistill.config.environment import resolve_environment
from easydistill.config.job import JobConfig
from easydistill.config.old_jobs import refuse_old, why_not_here
from easydistill.config.overrides import apply_overrides
from easydistill.config.pipeline import PipelineConfig
from easydistill.config.pipeline_jobs import parts_of, typed_jobs
from easydistill.config.plain import find_foreign, from_mapping
from easydistill.config.syntax import parse_file
from easydistill.errors import ConfigError, ConfigIssue

JobClasses = Mapping[str, type[JobConfig]]


@dataclass(frozen=True)
class LoadedConfig:
    """A valid config and what it was made from."""

    job: JobConfig
    name: str
    """The file's name without suffix; names the default run directory."""
    source: dict[str, Any] = field(repr=False)
    """As written: before aliases, overrides and the environment. May hold secrets."""
    path: Path | None
    overrides: tuple[str, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    """What was read under another name or in another way than it is written."""

    @property
    def run_directory(self) -> Path:
        return self.job.run_directory(self.name)


def load_config(
    source: str | Path | Mapping[str, Any],
    job_classes: Callable[[], JobClasses],
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
        path: Path | None = Path(source)
        document = parse_file(Path(source))
    else:
        path, document = None, from_mapping(source)
    written = copy.deepcopy(document.data)
    # Old names first, so that an override replaces a value under whichever name it stands; then those inside overrides.
    twice = apply_aliases(document)
    unusable = apply_overrides(document, overrides)
    twice |= apply_aliases(document)
    classes = job_classes()
    refuse_old(document, classes)
    parts, of_parts = parts_of(document, classes)
    data, unset = resolve_environment(document)
    borrowed = {("jobs", name, *path) for name, part in parts.items() for path in part.shared}
    unset = {path: issue for path, issue in unset.items() if path not in borrowed}
    job, found = _judge(document, data, classes)
    jobs, inside = typed_jobs(parts, data, lambda part, values: _judge(part, values, classes))
    # What is told first about a path stands: the most particular comes first.
    issues = {**found, **inside, **of_parts, **twice, **find_foreign(document, data), **unset}
    if job is None or unusable or issues:
        raise ConfigError([*unusable, *(issues[path] for path in sorted(issues, key=document.line))])
    name = path.stem if path is not None else "config"
    if isinstance(job, PipelineConfig):
        # Its jobs are planned with the place where they find each other's artifacts.
        job = job.model_copy(update={"jobs": jobs, "output_dir": str(job.run_directory(name))})
    return LoadedConfig(job, name, written, path, tuple(overrides), tuple(document.notes))


def _judge(
    document: Document, data: dict[str, Any], classes: JobClasses
) -> tuple[JobConfig | None, dict[KeyPath, ConfigIssue]]:
    """The typed job, or every issue by path."""
    issues: dict[KeyPath, ConfigIssue] = {}
    job_type = data.get("job_type")
    if isinstance(job_type, str) and job_type not in classes and (why := why_not_here(job_type)):
        return None, {("job_type",): document.issue(("job_type",), *why)}
    if not isinstance(job_type, str) or job_type not in classes:
        guess, issue = _job_type_issue(document, classes)
        issues[("job_type",)] = issue
        # Judge the sections by the job that is probably meant, so that all mistakes show at once.
        data["job_type"] = job_type = guess or _best_fit(data, classes)
    try:
        job = classes[job_type].model_validate(data)
    except ValidationError as error:
        old = document.old_job_type
        if JOB_TYPE_ALIASES.get(old) == job_type and not issues:
            problem = f"{old} is read as {job_type}, which knows less than the old job"
            issues[("job_type",)] = document.issue(("job_type",), problem, SEVERAL_JOBS[old])
        others = {name: classes[name] for name in classes if name != job_type}
        return None, {**explain(error, document, classes[job_type], others), **issues}
    return None if issues else job, issues


def _job_type_issue(document: Document, classes: JobClasses) -> tuple[str | None, ConfigIssue]:
    """The job type that was probably meant, and what is wrong with the one given."""
    job_type = document.data.get("job_type")
    known = ", ".join(sorted(classes))
    guess = closest(job_type, [*classes, *JOB_TYPE_ALIASES]) if isinstance(job_type, str) else None
    if "job_type" not in document.data:
        problem = "this key is missing"
        similar = closest("job_type", document.data)
        mend = f'add "job_type": one of {known}' + (f" (is {similar!r} meant to be it?)" if similar else "")
    elif not isinstance(job_type, str):
        problem, mend = f"text is needed here, not {show(job_type)}", f"use one of {known}"
    else:
        problem = f"there is no job type {show(job_type)}"
        mend = f'did you mean "{guess}"? Known are {known}' if guess else f"use one of {known}"
    return JOB_TYPE_ALIASES.get(guess, guess) if guess else None, document.issue(("job_type",), problem, mend)


def _best_fit(data: dict[str, Any], classes: JobClasses) -> str:
    """The job type for which a config that names none has the fewest mistakes."""

    def mistakes(job_type: str) -> int:
        try:
            classes[job_type].model_validate({**data, "job_type": job_type})
        except ValidationError as error:
            return error.error_count()
        return 0

    return min(sorted(classes), key=mistakes)
