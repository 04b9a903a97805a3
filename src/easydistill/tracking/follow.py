"""The files of a run, as they grow → figures for a sink, each step once.

A logged step is final once a checkpoint of it, or of a later one, is complete, or its stage is. A step that is logged
again takes the place of the earlier one and of all that followed it: training has gone on from a checkpoint before it,
or has begun anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easydistill.config.sink import Figures
from easydistill.data.manifest import NAME as MANIFEST
from easydistill.data.numbers import as_float
from easydistill.engine.progress import PROGRESS
from easydistill.engine.run_directory import RunDirectory
from easydistill.engine.stage import kind_of
from easydistill.engine.summary import JOB
from easydistill.methods.shared.checkpoints import WHOLE

SUMMARY = "summary"
COLD_START = "cold_start"
"""The part of an on-policy training that counts its own steps, and the folder of its checkpoints."""
_DEEPEST = 4
"""Levels of a stage's metrics that are read."""
_METRICS = "metrics.jsonl"
_ABOUT = frozenset({"time", "stage", "step", "of"})
Sent = dict[str, int]
"""The last step that was sent, by stream."""


class Superseded(Exception):
    """Steps were logged again that the sink has got already: its record has to be written anew."""


def sizes(run: Path) -> dict[str, int]:
    """How long the files of figures are now, by path."""
    files = (part / name for part in _parts(run) for name in (_METRICS, PROGRESS))
    return {str(path): path.stat().st_size for path in files if path.is_file()}


def _parts(run: Path) -> list[Path]:
    """The run's directory, and in a pipeline those of its jobs."""
    return [run, *(path for path in RunDirectory(run).stage_directories() if (path / "config.resolved.json").is_file())]


@dataclass
class _Entry:
    figures: Figures
    old: bool
    """Logged before this start of the run, which may log it again."""


@dataclass
class _Stream:
    """One kind of line of one file: what is not sent yet, in the order of the steps."""

    logged: bool
    """Whether it is of `metrics.jsonl`; progress is kept in journals, and what is counted once stands."""
    sent: int | None = None
    waiting: list[_Entry] = field(default_factory=list)
    last: int = -1
    """The step of the last line."""

    def add(self, entry: _Entry) -> None:
        self.drop(entry.figures.step)
        self.waiting.append(entry)

    def drop(self, first: int) -> None:
        """Forget what waits from a step on."""
        while self.waiting and self.waiting[-1].figures.step >= first:
            self.waiting.pop()


class Follower:
    """Reads what is new in a run's files.

    Args:
        run: the run's directory.
        old: sizes of its files when this start of the run began; see `sizes`.
        holds_back: give only what is final, for a record that cannot be written anew.
        sent: what a record that is continued has got already; updated in place.
    """

    def __init__(self, run: Path, old: Mapping[str, int], *, holds_back: bool, sent: Sent | None = None) -> None:
        self._run, self._old, self._holds_back = run, old, holds_back
        self.sent: Sent = {} if sent is None else sent
        self._streams: dict[str, _Stream] = {}
        self._read: dict[Path, int] = {}
        self._final: dict[str, int] = {}
        self._told: dict[str, dict[str, float]] = {}
        self._manifests: dict[Path, tuple[int, dict[str, float], float]] = {}

    def new(self, *, ended: bool = False) -> list[Figures]:
        """What a sink has not got, up to now.

        Args:
            ended: the run writes no more: what stands, stands.

        Raises:
            Superseded: start again with a new record.
        """
        for part in _parts(self._run):
            prefix = "" if part == self._run else f"{part.name.partition('-')[2]}/"
            for file in (_METRICS, PROGRESS):
                for line, is_old in self._lines(part / file):
                    self._take(prefix, line, is_old, logged=file == _METRICS)
        found = [figures for name, stream in self._streams.items() for figures in self._due(name, stream, ended)]
        for part in _parts(self._run):
            prefix = "" if part == self._run else f"{part.name.partition('-')[2]}/"
            found += self._summaries(part, prefix)
        return sorted(found, key=lambda figures: figures.time)

    def _lines(self, path: Path) -> Iterator[tuple[dict[str, Any], bool]]:
        """Complete lines that were not read yet, and whether they are old."""
        try:
            with path.open("rb") as file:
                at = self._read.get(path, 0)
                file.seek(at)
                data = file.read()
        except OSError:
            return
        old = self._old.get(str(path), 0)
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            is_old = at < old
            at += len(line)
            try:
                value = json.loads(line)
            except ValueError:
                # Torn by a kill.
                continue
            if isinstance(value, dict):
                yield value, is_old
        self._read[path] = at

    def _take(self, prefix: str, line: dict[str, Any], is_old: bool, *, logged: bool) -> None:
        stage, step, at = line.get("stage"), line.get("step"), as_float(line.get("time"))
        if not isinstance(stage, str) or not isinstance(step, int) or isinstance(step, bool):
            return
        name = f"{prefix}{stage}"
        stream = self._streams.setdefault(name, _Stream(logged, self.sent.get(name)))
        again, stream.last = step <= stream.last, step
        if stream.sent is not None and stream.sent >= step:
            # A record that is continued has the lines of earlier starts, and rows that failed are counted again.
            if self._holds_back and (not logged or (is_old and not again)):
                return
            raise Superseded
        if logged:
            self._drop_later(name, step)
        numbers = ((key, as_float(value)) for key, value in line.items() if key not in _ABOUT)
        values = {key: value for key, value in numbers if value is not None}
        if values:
            stream.add(_Entry(Figures(name, step, at or 0.0, values), is_old))

    def _drop_later(self, name: str, step: int) -> None:
        """Later steps in other streams of the same training are of an earlier attempt too."""
        family = _training(name)
        for other, stream in self._streams.items():
            if other != name and stream.logged and _training(other) == family:
                stream.drop(step + 1)

    def _due(self, name: str, stream: _Stream, ended: bool) -> Iterator[Figures]:
        final = self._final_step(name) if stream.waiting and stream.logged else float("inf")
        while stream.waiting:
            entry = stream.waiting[0]
            stands = ended or not entry.old
            if entry.figures.step > final and (self._holds_back or not stands):
                return
            stream.waiting.pop(0)
            stream.sent = self.sent[name] = entry.figures.step
            yield entry.figures

    def _final_step(self, name: str) -> float:
        """The last step of a stream that no resumed run logs again."""
        job, _, stage = name.rpartition("/")
        directory = self._directory(job)
        if directory is None:
            return 0
        run = RunDirectory(directory)
        kind = kind_of(stage)
        trained = [path for path in run.stage_directories() if kind_of(path.name.partition("-")[2]) == "train"]
        if stage != kind:
            trained = [path for path in trained if path.name.endswith(f"-{stage}")]
        if not trained or (trained[-1] / MANIFEST).is_file():
            return float("inf")
        whole = trained[-1].glob(f"checkpoints/**/{WHOLE}")
        steps = (int(path.parent.name.rpartition("-")[2]) for path in whole if _is_of(path, stage))
        self._final[name] = max(self._final.get(name, -1), *steps, -1)
        return self._final[name]

    def _directory(self, job: str) -> Path | None:
        if not job:
            return self._run
        return next((part for part in _parts(self._run) if part.name.partition("-")[2] == job), None)

    def _summaries(self, part: Path, prefix: str) -> Iterator[Figures]:
        """The figures of stages that are complete, once each."""
        for directory in RunDirectory(part).stage_directories():
            stage = directory.name.partition("-")[2]
            name = f"{prefix}{SUMMARY}/{stage}"
            values, at = self._manifest(directory / MANIFEST)
            if not values or self._told.get(name) == values:
                continue
            if name in self._told and not self._holds_back:
                raise Superseded
            self._told[name] = values
            if self._holds_back and name in self.sent:
                continue
            self.sent[name] = 0
            yield Figures(name, 0, at, values)

    def _manifest(self, path: Path) -> tuple[dict[str, float], float]:
        """The figures of a stage that is complete, and when it was; read again only if it has changed."""
        try:
            changed = path.stat().st_mtime_ns
        except OSError:
            return {}, 0.0
        known = self._manifests.get(path)
        if known is None or known[0] != changed:
            known = self._manifests[path] = (changed, _of_manifest(path), changed / 1e9)
        return known[1], known[2]


def _training(name: str) -> str:
    """What steps are counted for: a training, or its cold start."""
    job, _, stage = name.rpartition("/")
    return f"{job}/{stage if stage == COLD_START or kind_of(stage) != stage else ''}"


def _is_of(marker: Path, stage: str) -> bool:
    """Whether a checkpoint is of the training, or of the cold start, that a stage of `metrics.jsonl` is about."""
    return (COLD_START in marker.parts) == (stage == COLD_START)


def _of_manifest(path: Path) -> dict[str, float]:
    """The figures of a complete stage, flat."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    metrics = manifest.get("metrics") if isinstance(manifest, dict) else None
    if not isinstance(metrics, dict) or JOB in metrics:
        # A pipeline's job: its own stages tell.
        return {}
    return dict(numbers_in({name: manifest.get(name) for name in ("seconds", "tokens", "rows")} | metrics))


def numbers_in(values: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, float]]:
    """Every finite number inside an object, by its path; lists are left out."""
    if isinstance(values, dict) and depth < _DEEPEST:
        for name, value in values.items():
            yield from numbers_in(value, f"{path}/{name}" if path else str(name), depth + 1)
    elif (number := as_float(values)) is not None:
        yield path, number
