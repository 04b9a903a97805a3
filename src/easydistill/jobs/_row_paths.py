"""What a config's paths tell without running it: names that no reader knows, files that are not what they say or not
whole, a config of DeepSpeed's that contradicts the job's, and what is not there.

What is not there is no error yet: a config may be checked on another machine than the one it runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from easydistill.config.base import Section
from easydistill.config.deepspeed_checks import KEY, deepspeed_issues, rollout_issues
from easydistill.config.fsdp2_checks import fsdp2_issues
from easydistill.config.job import JobConfig
from easydistill.config.models import ModelsConfig
from easydistill.config.pipeline import Citation, PipelineConfig
from easydistill.data.row_files.hub_place import is_hub
from easydistill.engine.checks import is_there, misnamed_rows, missing_file, unreadable_rows
from easydistill.errors import ConfigIssue
from easydistill.plain_files import Reference, load

_OF_IMAGES = "image_instruction_generation"
"""The job whose `dataset.instruction_path` names images, or rows with images alone."""
_OF_OPERATORS = frozenset({"", "synthesis"})
"""Where the sections of a job's or an operator's file are, which the job type names."""
_OF_FILES = frozenset({"instruction_response_extraction", _OF_IMAGES})
"""Jobs whose `dataset.instruction_path` names texts or images."""


def row_path_issues(job: JobConfig) -> list[ConfigIssue]:
    """Issues with the paths of rows of a job, or of the jobs of a pipeline."""
    return _of_every_job(job, _row_issues)


def launch_issues(job: JobConfig) -> list[ConfigIssue]:
    """What is wrong with how a job, or the jobs of a pipeline, are launched, as far as their files are here."""
    return _of_every_job(job, _launch_issues)


def _launch_issues(job: JobConfig) -> list[ConfigIssue]:
    launch, training = getattr(job, "launch", None), getattr(job, "training", None)
    found = deepspeed_issues(launch, training, only_present=True) + fsdp2_issues(launch, training)
    answers = getattr(job, "policy", None) or getattr(job, "on_policy", None)
    return found + (rollout_issues(launch, answers.rollouts) if answers is not None else [])


def absent_paths(job: JobConfig) -> list[ConfigIssue]:
    """What a job, or the jobs of a pipeline, name and is not on this machine: rows, templates, models, signals."""
    return _of_every_job(job, _absent)


def unchecked_paths(job: JobConfig) -> list[tuple[str, str]]:
    """(key, location) of rows of a job, or of the jobs of a pipeline, that are fetched from a hub."""
    if isinstance(job, PipelineConfig):
        return [
            (f"jobs.{name}.{key}", path) for name, inner in job.jobs.items() for key, path in unchecked_paths(inner)
        ]
    return [(key, path) for key, path in _rows(job) if is_hub(path)]


def paths_of(job: JobConfig) -> list[tuple[str, str]]:
    """(key, path) of the files and folders that a job, or the jobs of a pipeline, read: rows, templates, a config of
    DeepSpeed's, plain files of extensions, models that are folders. Not those that another job makes, nor what is
    fetched from a hub."""
    if isinstance(job, PipelineConfig):
        return [(f"jobs.{name}.{key}", path) for name, inner in job.jobs.items() for key, path in paths_of(inner)]
    rows = [(key, path) for key, path in _rows(job) if not is_hub(path)]
    files = [] if getattr(job, "job_type", None) not in _OF_FILES else list(_named(job, "dataset.instruction_path"))
    named = list(_named(job, "dataset.template", "inference.template", KEY))
    models = [*_named(job, "models.student", "models.student.from_model"), *_teachers(job)]
    code = list(_plain_files(job))
    return [*rows, *files, *named, *code, *((key, path) for key, path in models if _is_path(path))]


def _of_every_job(job: JobConfig, look: Callable[[JobConfig], list[ConfigIssue]]) -> list[ConfigIssue]:
    if not isinstance(job, PipelineConfig):
        return look(job)
    return [
        replace(issue, path=f"jobs.{name}.{issue.path}")
        for name, inner in job.jobs.items()
        for issue in _of_every_job(inner, look)
    ]


def _row_issues(job: JobConfig) -> list[ConfigIssue]:
    found = [issue for key, path in _rows(job) for issue in _issues(key, path)]
    if getattr(job, "job_type", None) == _OF_IMAGES:
        from easydistill.synthesis.image_source import ImageSource

        if any(is_there(path) for _, path in _named(job, "dataset.instruction_path")):
            found += ImageSource(getattr(job, "dataset")).issues()  # noqa: B009 (a job of that type has one)
    return found


def _absent(job: JobConfig) -> list[ConfigIssue]:
    found: list[ConfigIssue] = []
    for key, path in _rows(job):
        if not is_hub(path) and not is_there(path):
            found += unreadable_rows(key, path)
    if getattr(job, "job_type", None) in _OF_FILES:
        files = _named(job, "dataset.instruction_path")
        found += [issue for key, path in files if not is_there(path) for issue in missing_file(key, path)]
    for key, path in _named(job, "dataset.template", "inference.template"):
        found += missing_file(key, path)
    for key, path in _named(job, KEY):
        found += missing_file(key, path)
    for key, path in [*_named(job, "models.student", "models.student.from_model"), *_teachers(job)]:
        if _is_path(path) and not Path(path).expanduser().exists():
            found.append(ConfigIssue("config", key, f"{path}: no such directory", "name the directory of a model"))
    return found


def _rows(job: JobConfig) -> Iterator[tuple[str, str]]:
    """(key, path) of everything that a job reads rows from, but for what another job makes."""
    prompts = list(_named(job, "dataset.instruction_path"))
    if getattr(job, "job_type", None) not in _OF_FILES:
        yield from prompts
    if not prompts:
        yield from _named(job, "dataset.labeled_path")
    benchmarks = getattr(getattr(job, "synthesis", None), "benchmarks", None)
    for number, path in enumerate(benchmarks if isinstance(benchmarks, list) else ()):
        if Citation.read(path) is None:
            yield f"synthesis.benchmarks.{number}", path
    for key, path in job.row_paths():
        if Citation.read(path) is None:
            yield key, path


def _named(job: JobConfig, *keys: str) -> Iterator[tuple[str, str]]:
    """(key, text) of those keys that hold a text, but for what another job of a pipeline makes."""
    for key in keys:
        value: Any = job
        for name in key.split("."):
            value = getattr(value, name, None)
        if isinstance(value, str) and Citation.read(value) is None:
            yield key, value


def _plain_files(section: Section, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, path) of the plain files that a job's sections come from, and of the modules beside them."""
    if section.plain_file is not None:
        reference = Reference.read(section.plain_file.reference)
        assert reference is not None
        first, *beside = load(reference.path).files
        for path in (first, *beside):
            yield (
                "job_type" if key in _OF_OPERATORS else key,
                str(Path(reference.path).parent / path.relative_to(first.parent)),
            )
    for name, value in section:
        if isinstance(value, Section):
            yield from _plain_files(value, f"{key}.{name}" if key else name)
        elif isinstance(value, list):
            inner = ((number, item) for number, item in enumerate(value) if isinstance(item, Section))
            for number, item in inner:
                yield from _plain_files(item, f"{key}.{name}.{number}" if key else f"{name}.{number}")


def _teachers(job: JobConfig) -> Iterator[tuple[str, str]]:
    """(key, reference) of the teachers on this machine, but for those that another job of a pipeline makes."""
    models = getattr(job, "models", None)
    if isinstance(models, ModelsConfig):
        yield from ((key, one) for key, one in models.teachers_by_key.items() if Citation.read(one) is None)
    else:
        yield from _named(job, "models.teacher")


def _is_path(reference: str) -> bool:
    """Whether a model reference cannot be a hub's id."""
    return Path(reference).is_absolute() or reference.startswith(("./", "../", "~", ".\\"))


def _issues(key: str, path: str) -> list[ConfigIssue]:
    return misnamed_rows(key, path) or unreadable_rows(key, path, only_present=True)
