"""From a config file, its overrides and the environment to one typed, immutable job config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from easydistill.config.base import Unfit
from easydistill.config.job import JobConfig
from easydistill.config.pipeline import PipelineConfig
from easydistill.config.reading.aliases import (
    JOB_TYPE_ALIASES,
    SEVERAL_JOBS,
    current_job_type,
    read_old_jobs,
    use_current_names,
)
from easydistill.config.reading.diagnose import closest, explain
from easydistill.config.reading.files import check_files_of_jobs, place_files
from easydistill.config.reading.given import fill_in
from easydistill.config.reading.nodes import Issues, Node, from_mapping
from easydistill.config.reading.old_jobs import refuse_old, why_not_here
from easydistill.config.reading.overrides import apply_overrides
from easydistill.config.reading.pipelines import ASKING, Shared, check_place, jobs_of, share_sections
from easydistill.config.reading.resolve import resolve
from easydistill.config.reading.syntax import read_file
from easydistill.config.reading.track import name_sinks
from easydistill.config.values import show
from easydistill.errors import ConfigError
from easydistill.recipes import PREFIX, config_of

JobClasses = Mapping[str, type[JobConfig]]


@dataclass(frozen=True)
class LoadedConfig:
    """A valid config and what it was made from."""

    job: JobConfig
    name: str
    """The file's name without suffix, or the recipe's with its size; names the default run directory."""
    source: dict[str, Any] = field(repr=False)
    """As written: before aliases, overrides and the environment. May hold secrets."""
    path: Path | None
    overrides: tuple[str, ...] = field(default=(), repr=False)
    given: str = "config"
    """How it was named: a path, or a recipe."""
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
        source: a file's path, `recipe:NAME` or `recipe:NAME:small`, or the config itself as a mapping.
        job_classes: gives the config class of each job type.
        overrides: `dotted.path=value`, applied in order over the file.

    Raises:
        ConfigError: with every issue that can be found at once.
    """
    path = None if isinstance(source, Mapping) else _path(source)
    root = from_mapping(source) if isinstance(source, Mapping) else read_file(_path(source))
    written, classes, issues = root.plain(), job_classes(), Issues()
    use_current_names(root, issues)
    unusable = apply_overrides(root, overrides, issues)
    read_old_jobs(root, issues)
    name_sinks(root, issues)
    place_files(root)
    parts = jobs_of(root)
    check_files_of_jobs((root, *parts.values()), classes)
    refuse_old(root, classes)
    fill_in(root, parts, issues)
    shared = share_sections(root, parts, classes, issues)
    data = resolve(root, issues)
    for part in parts:
        check_place(part, parts, issues)
    jobs = {}
    for part, written_job in parts.items():
        with issues.of_job(part):
            jobs[part] = _typed(written_job, _asking(part, data["jobs"][part], classes, shared), classes, issues)
    shared.tell(root.find(("shared",)))
    job = _typed(root, data, classes, issues)
    if found := [*unusable, *issues.in_order()]:
        raise ConfigError(found)
    assert job is not None
    name = _name(source, path)
    if isinstance(job, PipelineConfig):
        # The jobs find each other's artifacts in the pipeline's run directory.
        where = job.remote or str(job.run_directory(name))
        if job.answers_cache is not None:
            kept = {"answers_cache": job.answers_cache}
            jobs = {inner: one and one.model_copy(update=kept) for inner, one in jobs.items()}
        job = job.model_copy(update={"jobs": jobs, "output_dir": where})
    given = "config" if isinstance(source, Mapping) else str(source)
    return LoadedConfig(job, name, written, path, tuple(overrides), given, tuple(issues.notes))


def _asking(name: str, data: dict[str, Any], classes: JobClasses, shared: Shared) -> dict[str, Any]:
    """A pipeline's job without shared sections of models that it does not ask: with one it is refused as a whole, and
    without it it is valid."""
    job_type = current_job_type(data.get("job_type"))
    candidates = [section for section in ASKING if section in shared.whole[name] and section in data]
    if job_type not in classes or not candidates:
        return data

    def problem(values: dict[str, Any]) -> str | None:
        """Why the job is refused as a whole; empty if one of its keys is wrong; None if it is valid."""
        try:
            classes[job_type].model_validate({**values, "job_type": job_type})
        except ValidationError as error:
            found = error.errors()
            why = found[0].get("ctx", {}).get("error")
            return why.problem if len(found) == 1 and not found[0]["loc"] and isinstance(why, Unfit) else ""
        return None

    why = problem(data)
    if not why:
        return data
    for section in candidates:
        if problem({key: value for key, value in data.items() if key != section}) is None:
            return shared.without(name, data, section, why)
    return data


def _path(source: str | Path) -> Path:
    return config_of(source) if isinstance(source, str) and source.startswith(PREFIX) else Path(source)


def _name(source: str | Path | Mapping[str, Any], path: Path | None) -> str:
    if path is None:
        return "config"
    # Files of recipes have the same names.
    return f"{path.parent.name}-{path.stem}" if str(source).startswith(PREFIX) else path.stem


def _typed(node: Node, data: dict[str, Any], classes: JobClasses, issues: Issues) -> JobConfig | None:
    """The typed job; None if an issue is reported.

    Args:
        node: the config or a pipeline's job, as written.
        data: the same as plain data, with the environment filled in.
    """
    written = data.get("job_type")
    job_type = current_job_type(written)
    if job_type not in classes and (why := why_not_here(job_type)):
        issues.add(node, *why, ("job_type",))
        return None
    if job_type not in classes:
        # Validate the sections as those of the most probable job, so that all mistakes are reported at once.
        job_type = _report_job_type(node, classes, issues) or _best_fit(data, classes)
    try:
        return classes[job_type].model_validate({**data, "job_type": job_type})
    except ValidationError as error:
        if isinstance(written, str) and written in SEVERAL_JOBS:
            problem = f"{written} is read as {job_type}, which does only part of the old job"
            issues.add(node, problem, SEVERAL_JOBS[written], ("job_type",))
        others = {name: classes[name] for name in classes if name != job_type}
        explain(error, node, classes[job_type], others, issues)
        return None


def _report_job_type(node: Node, classes: JobClasses, issues: Issues) -> str | None:
    """Report a wrong job type; returns the one that was probably meant."""
    job_type = node.at(("job_type",))
    known = ", ".join(sorted(classes))
    guess = closest(job_type, [*classes, *JOB_TYPE_ALIASES]) if isinstance(job_type, str) else None
    if "job_type" not in node.value:
        problem = "this key is missing"
        similar = closest("job_type", node.value)
        hint = f'add "job_type": one of {known}' + (f" (did you write it as {similar!r}?)" if similar else "")
    elif not isinstance(job_type, str):
        problem, hint = f"text is needed here, not {show(job_type)}", f"use one of {known}"
    else:
        problem = f"there is no job type {show(job_type)}"
        hint = f'did you mean "{guess}"? Known are {known}' if guess else f"use one of {known}"
    issues.add(node, problem, hint, ("job_type",))
    return current_job_type(guess) if guess else None


def _best_fit(data: dict[str, Any], classes: JobClasses) -> str:
    """The job type with the fewest validation errors, for a config that names none."""

    def mistakes(job_type: str) -> int:
        try:
            classes[job_type].model_validate({**data, "job_type": job_type})
        except ValidationError as error:
            return error.error_count()
        return 0

    return min(sorted(classes), key=mistakes)
