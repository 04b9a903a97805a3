"""The runner takes stages in order, skips those that are complete, and records what happened.

A stage is complete if and only if its manifest exists and holds the fingerprint computed now. The fingerprint covers
the stage's own config and the hashes of the outputs it reads, so a change reruns exactly what it affects.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from easydistill.data.files import hash_file, write_json
from easydistill.data.images.sources import changed_sources
from easydistill.data.manifest import NAME as MANIFEST
from easydistill.data.manifest import Manifest
from easydistill.data.records import content_hash
from easydistill.engine.again import KEPT, RUNS, Standing, changes, waiting, why_again
from easydistill.engine.budget import Budget
from easydistill.engine.checks import in_one
from easydistill.engine.events import StageFinished, StageStarted
from easydistill.engine.finished import STUDENT, FinishedStudent
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.machine import machine_error
from easydistill.engine.machine.attempts import attempted
from easydistill.engine.machine.room import check_room
from easydistill.engine.machine.stages import explained_machine, room_of, thrift_of
from easydistill.engine.progress import Reporter, duration
from easydistill.engine.rates import record as keep_rate
from easydistill.engine.run_directory import LOGGER, RunDirectory, package_versions
from easydistill.engine.secrets import Redactor
from easydistill.engine.stage import Artifact, Dated, Examining, Foretelling, Stage, StageContext, StageResult, work_of
from easydistill.engine.usage import Meter
from easydistill.errors import ConfigError, DataError, StorageError

TIME_SPENT = "seconds.json"
MODEL = "model"
"""Folder in a stage's directory with the student that it has trained."""


@dataclass(frozen=True)
class StageRecord:
    """What happened to a stage in this run."""

    name: str
    status: str
    """`done` (ran now) or `skipped` (was complete)."""
    manifest: Manifest
    directory: Path


class Runner:
    """Runs a job's stages inside a run directory.

    Args:
        said: what the user knows already; lines that are said are added.
        run_stage: how a stage is run; by default in this process.
        budget: what the stages may spend together with those of other jobs.
    """

    def __init__(
        self,
        run: RunDirectory,
        reporter: Reporter,
        redactor: Redactor,
        stop: StopSignal,
        said: set[str] | None = None,
        run_stage: Callable[[Stage, StageContext], StageResult] | None = None,
        budget: Budget | None = None,
    ) -> None:
        self._budget = budget
        self._run_in = run_stage or (lambda stage, context: stage.run(context))
        self._run = run
        self._reporter = reporter
        self._redactor = redactor
        self._stop = stop
        self._said: set[str] = set() if said is None else said
        self._finished: FinishedStudent | None = None

    @classmethod
    def silent(cls, run: RunDirectory) -> Runner:
        """A runner for inspection only: it prints and writes nothing."""
        return cls(run, Reporter(None, quiet=True), Redactor(), StopSignal())

    def preflight(self, stages: Sequence[Stage]) -> None:
        """Refuse to start a run that cannot finish.

        Raises:
            ConfigError: with every issue of every stage.
        """
        # Stages of several rounds report the same issues.
        issues = in_one([issue for stage in stages for issue in stage.preflight()])
        if issues:
            raise ConfigError(issues)

    def examine(self, stages: Sequence[Stage], records: Sequence[StageRecord | None]) -> None:
        """Make the checks that open models' files, of stages that will run.

        Raises:
            ConfigError: with every issue.
        """
        todo = [stage for stage, record in zip(stages, records, strict=True) if record is None]
        issues = [issue for stage in todo if isinstance(stage, Examining) for issue in stage.examine()]
        if issues:
            raise ConfigError(issues)

    def foretell(self, stages: Sequence[Stage], records: Sequence[StageRecord | None]) -> None:
        """Say what a user would not expect of the stages that will run, each line once in a run."""
        todo = [stage for stage, record in zip(stages, records, strict=True) if record is None]
        for line in (line for stage in todo if isinstance(stage, Foretelling) for line in stage.foretell()):
            # Training and evaluation render the same rows.
            if line not in self._said:
                self._said.add(line)
                self._reporter.say(f"note: {line}")

    def check_room(self, stages: Sequence[Stage], records: Sequence[StageRecord | None]) -> None:
        """Compare what the stages that will run are going to write with what is free.

        Raises:
            StorageError: it has no room for certain.
        """
        todo = [stage for stage, record in zip(stages, records, strict=True) if record is None]
        line = check_room(self._run.path, room_of(todo), "this run")
        if line is not None:
            self._reporter.say(f"note: {line}")

    def completed(self, stages: Sequence[Stage]) -> list[StageRecord | None]:
        """For each stage, its record if it is complete as configured now, else None (as for all that read it)."""
        self._finished = FinishedStudent(self._run)
        records: list[StageRecord | None] = []
        artifacts: dict[str, Artifact] = {}
        for number, stage in enumerate(stages, start=1):
            record = None
            if all(name in artifacts for name in stage.inputs):
                directory = self._run.stage_directory(number, stage.name)
                fingerprint, _ = self._fingerprint(stage, artifacts)
                manifest = self._complete_manifest(directory, fingerprint)
                if manifest is not None:
                    record = StageRecord(stage.name, "skipped", manifest, directory)
                    artifacts[stage.name] = Artifact(directory, manifest)
            records.append(record)
        return records

    def standings(self, stages: Sequence[Stage], records: Sequence[StageRecord | None]) -> list[Standing]:
        """For each stage, what becomes of it and why; `records` as `completed` gives them."""
        found: list[Standing] = []
        again = {stage.name for stage, record in zip(stages, records, strict=True) if record is None}
        artifacts = {record.name: Artifact(record.directory, record.manifest) for record in records if record}
        for number, (stage, record) in enumerate(zip(stages, records, strict=True), start=1):
            directory = self._run.stage_directory(number, stage.name)
            rerun = [name for name in stage.inputs if name in again]
            if record is not None:
                found.append(Standing(KEPT))
            elif rerun:
                found.append(waiting(directory, rerun))
            elif Manifest.read(directory) is None:
                # Nothing was complete that could have changed, so nothing is hashed to find out.
                found.append(Standing(RUNS))
            else:
                found.append(Standing(RUNS, why_again(directory, self._fingerprint(stage, artifacts)[1])))
        return found

    def tell_standings(self, stages: Sequence[Stage], records: Sequence[StageRecord | None]) -> None:
        """Say what is kept and what runs again, unless all runs for the first time."""
        standings = self.standings(stages, records)
        if any(standing != Standing(RUNS) for standing in standings):
            shown = [f"{stage.name} {standing.words}" for stage, standing in zip(stages, standings, strict=True)]
            self._reporter.say(f"of an earlier run: {'; '.join(shown)}")

    def execute(self, stages: Sequence[Stage], on_stage: Any = None) -> list[StageRecord]:
        """Run the stages that are not complete, in order; returns a record of every stage.

        `on_stage(records)` is called after each stage, so that a summary on disk keeps up with the run.
        """
        self._run.keep_start()
        finished = self._finished or FinishedStudent(self._run)
        trains = [stage.name for stage in stages if STUDENT in stage.offers]
        if trains:
            finished.prepare()
        artifacts: dict[str, Artifact] = {}
        records: list[StageRecord] = []
        for number, stage in enumerate(stages, start=1):
            self._stop.raise_if_requested()
            directory = self._run.number_stage(number, stage.name)
            fingerprint, fingerprint_of = self._fingerprint(stage, artifacts)
            manifest = self._complete_manifest(directory, fingerprint)
            status = "skipped"
            if manifest is None:
                self._announce(directory, stage.name, number, len(stages), fingerprint_of)
                if stage.name in trains[-1:]:
                    self._keep_student(finished, directory, fingerprint_of)
                with explained_machine(directory, stage), self._attempted(directory, stage):
                    manifest = self._run_stage(stage, directory, artifacts, fingerprint, fingerprint_of)
                status = "done"
            self._tell_finished(manifest, number, len(stages), skipped=status == "skipped")
            artifacts[stage.name] = Artifact(directory, manifest)
            records.append(StageRecord(stage.name, status, manifest, directory))
            if on_stage is not None:
                on_stage(records)
        finished.forget()
        return records

    def _keep_student(self, finished: FinishedStudent, directory: Path, now: dict[str, Any]) -> None:
        """Keep the student of a stage that is complete with other settings, and say where."""
        old = Manifest.read(directory)
        if old is None or not (changed := list(changes(old.fingerprint_of, now))):
            return
        kept = finished.keep(directory / MODEL)
        if kept is not None:
            what = "other rows" if all(key.startswith("inputs.") for key in changed) else "other settings"
            text = f"the student that was trained with {what} is kept, with its report, in {kept}"
            self._reporter.say(f"  note: {text} (--replace drops it)")
            LOGGER.info("%s", text)

    def _fingerprint(self, stage: Stage, artifacts: dict[str, Artifact]) -> tuple[str, dict[str, Any]]:
        inputs = {name: artifacts[name].manifest.output_hash() for name in stage.inputs}
        # Through JSON, so that it compares equal with a manifest's.
        values: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "stage": stage.name,
                    "config": stage.fingerprint(),
                    "inputs": inputs,
                    **self._date(stage),
                }
            )
        )
        return content_hash(values), values

    def _date(self, stage: Stage) -> dict[str, str]:
        dated = isinstance(stage, Dated) and stage.shows_date()
        return {"date": self._run.started.isoformat()} if dated else {}

    @staticmethod
    def _complete_manifest(directory: Path, fingerprint: str) -> Manifest | None:
        manifest = Manifest.read(directory)
        if manifest is None or manifest.fingerprint != fingerprint or not manifest.outputs_present(directory):
            return None
        return None if changed_sources(directory) else manifest

    @contextlib.contextmanager
    def _attempted(self, directory: Path, stage: Stage) -> Iterator[None]:
        directory.mkdir(parents=True, exist_ok=True)
        with attempted(directory, self._reporter.say, lambda: thrift_of(stage)):
            yield

    def _announce(self, directory: Path, name: str, number: int, total: int, now: dict[str, Any]) -> None:
        reason = why_again(directory, now)
        why = f" again: {reason}" if reason else ""
        self._reporter.say(f"[{number}/{total}] {name}{why}")
        if self._reporter.tell is not None:
            self._reporter.tell(StageStarted(name, number, total, why.strip()))
        LOGGER.info("stage %s starts%s", name, why)

    def _tell_finished(self, manifest: Manifest, number: int, total: int, *, skipped: bool) -> None:
        if self._reporter.tell is not None:
            rows, spent = manifest.rows, manifest.seconds
            about = (manifest.stage, number, total, skipped, spent, rows.entered, rows.left, dict(manifest.metrics))
            self._reporter.tell(StageFinished(*about))

    def _run_stage(
        self,
        stage: Stage,
        directory: Path,
        artifacts: dict[str, Artifact],
        fingerprint: str,
        fingerprint_of: dict[str, Any],
    ) -> Manifest:
        directory.mkdir(parents=True, exist_ok=True)
        begun = any(not path.name.startswith(".") for path in directory.iterdir())
        (directory / MANIFEST).unlink(missing_ok=True)
        started = datetime.datetime.now(datetime.UTC)
        with _Stopwatch(directory / TIME_SPENT, fingerprint) as watch:
            context = StageContext(
                directory=directory,
                run_directory=self._run.path,
                inputs={name: artifacts[name] for name in stage.inputs},
                fingerprint=fingerprint,
                stop=self._stop,
                reporter=self._reporter,
                redactor=self._redactor,
                said=self._said,
                started=self._run.started,
                budget=self._budget,
            )
            meter = Meter()
            with _tidied(stage, context):
                result = self._run_in(stage, context)
            self._stop.raise_if_requested()
        context.image_sources.write(directory)
        context.keep_rejected(result.rejected)
        missing = [name for name in result.outputs if not (directory / name).is_file()]
        if missing:
            raise DataError(f"stage {stage.name} did not write {', '.join(missing)}")
        manifest = Manifest(
            stage=stage.name,
            fingerprint=fingerprint,
            fingerprint_of=fingerprint_of,
            outputs={name: hash_file(directory / name) for name in result.outputs},
            rows=result.rows,
            tokens=dict(result.tokens),
            metrics=dict(result.metrics),
            seconds=round(watch.total, 3),
            started=started.isoformat(timespec="seconds"),
            finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            versions=package_versions(),
            notices=list(context.notices),
        )
        meter.read(fingerprint).write(directory)
        manifest.write(directory)
        if not begun and (work := work_of(stage)) is not None:
            # What goes on with earlier work says nothing of the whole.
            keep_rate(work, watch.total)
        (directory / TIME_SPENT).unlink(missing_ok=True)
        for notice in context.notices:
            LOGGER.info("stage %s: %s", stage.name, notice)
        LOGGER.info("stage %s done in %s", stage.name, duration(watch.total))
        return manifest


@runtime_checkable
class _Tidying(Protocol):
    def prepare(self, context: StageContext) -> None:
        """Remove what an earlier attempt left unfinished."""


@contextlib.contextmanager
def _tidied(stage: Stage, context: StageContext) -> Iterator[None]:
    """Where a disk was full, half a checkpoint is not left there to fill it."""
    try:
        yield
    except Exception as error:
        if isinstance(stage, _Tidying) and isinstance(machine_error(error, context.directory), StorageError):
            with contextlib.suppress(OSError):
                stage.prepare(context)
        raise


class _Stopwatch:
    """Wall time of a stage over all its attempts at the same fingerprint, except attempts that were killed."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self._earlier = 0.0
        self._start = 0.0
        self.total = 0.0

    def __enter__(self) -> _Stopwatch:
        try:
            saved = json.loads(self._path.read_text(encoding="utf-8"))
            if saved["fingerprint"] == self._fingerprint:
                self._earlier = float(saved["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            self._earlier = 0.0
        self._start = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        self.total = self._earlier + time.monotonic() - self._start
        if exception[0] is not None:
            value = {"fingerprint": self._fingerprint, "seconds": self.total}
            # The error that ends the stage may be the disk's: it is the one to tell.
            with contextlib.suppress(OSError):
                write_json(self._path, value)
