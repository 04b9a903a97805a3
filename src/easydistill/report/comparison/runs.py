"""The runs that are compared: their facts, what they are called, and what is missing of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from easydistill.engine.run_directory import RunDirectory
from easydistill.errors import DataError
from easydistill.report.collect import Answer, Facts, collect
from easydistill.report.curve import Curve
from easydistill.report.values import as_dict

FILES = ("summary.json", "config.resolved.json", "metrics.jsonl", "stages")
"""One of them shows that a directory is that of a run."""


@dataclass(frozen=True)
class Compared:
    """A run and its name on the page."""

    name: str
    facts: Facts
    jobs: tuple[Facts, ...]
    """Of a pipeline, in order; empty for a job alone."""

    @cached_property
    def main(self) -> Facts:
        """The run itself; of a pipeline the last job that trained, else the last one."""
        trained = [job for job in self.jobs if job.curve.points]
        return trained[-1] if trained else self.jobs[-1] if self.jobs else self.facts

    @property
    def curve(self) -> Curve:
        return self.main.curve

    @cached_property
    def answers(self) -> tuple[Answer, ...]:
        """The held-out answers; of a pipeline those of the last job that has some."""
        return next((job.answers for job in (self.facts, *reversed(self.jobs)) if job.answers), ())

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The resolved config, flat, by dotted path."""
        return flat(self.facts.config)

    @property
    def state(self) -> str:
        return self.facts.summary.status

    def damage(self) -> list[str]:
        """What is missing or cannot be read."""
        directory = self.facts.directory
        return [f"{name} is missing or cannot be read" for name in FILES[:2] if not _is_object(directory / name)]


def _is_object(path: Path) -> bool:
    from easydistill.report.values import json_object

    return bool(json_object(path))


def read_runs(paths: Sequence[Path]) -> tuple[Compared, ...]:
    """The runs in these directories.

    Raises:
        DataError: fewer than two different ones, or one is not the directory of a run.
    """
    for path in paths:
        if not any((path / name).exists() for name in FILES):
            raise DataError(f"{path}: no run is here\n    → name run directories, e.g. runs/a runs/b")
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise DataError("two or more different runs are compared\n    → name each run directory once")
    return tuple(_read(name, path) for name, path in zip(names_of(paths), paths, strict=True))


def _read(name: str, path: Path) -> Compared:
    inner = (each for each in RunDirectory(path).stage_directories() if (each / "summary.json").is_file())
    return Compared(name, collect(path), tuple(map(collect, inner)))


def names_of(paths: Sequence[Path]) -> list[str]:
    """What tells the runs apart: the ends of their paths, as few parts as that takes."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if max(Counter(names).values()) == 1:
            return names
    return [str(path) for path in paths]


def flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """An object's values by dotted path, also of objects in lists; other lists and empty objects are values."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping) and value:
            found |= flat(value, key)
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            found |= flat({str(number): item for number, item in enumerate(value)}, key)
        else:
            found[key] = value
    return found


def packages(run: Compared) -> dict[str, Any]:
    """Where a run was made: versions of packages, and of the machine."""
    environment = run.facts.environment
    about = {name: environment.get(name) for name in ("python", "platform", "cpus")}
    return {name: value for name, value in about.items() if value is not None} | as_dict(environment.get("packages"))
