"""What the runner knows about a job: stages, the context they run in, and what they leave behind."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from easydistill.data.files import write_jsonl
from easydistill.data.manifest import Manifest, RowCounts
from easydistill.data.records import Rejection
from easydistill.engine.again import KEPT, Standing
from easydistill.engine.budget import Budget
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.engine.secrets import Redactor
from easydistill.errors import ConfigIssue, EasyDistillError

if TYPE_CHECKING:
    from easydistill.data.images import ImageStore
    from easydistill.data.images.sources import SourceRecord
    from easydistill.data.reading import Reading

REJECTED = "rejected.jsonl"


def kind_of(stage: str) -> str:
    """A stage's name without the number of its round: `train-2` → `train`."""
    name, _, number = stage.rpartition("-")
    return name if name and number.isdecimal() else stage


@dataclass(frozen=True)
class Artifact:
    """A complete stage's directory and manifest."""

    directory: Path
    manifest: Manifest


@dataclass(frozen=True)
class StageContext:
    """What a stage receives when it runs."""

    directory: Path
    """The stage's own directory, with whatever an earlier, unfinished attempt left in it."""
    run_directory: Path
    inputs: Mapping[str, Artifact]
    """The artifacts of the stages named in `Stage.inputs`."""
    fingerprint: str
    stop: StopSignal
    reporter: Reporter
    redactor: Redactor
    started: datetime.datetime | None = None
    """When the run was first started: the date that chat templates write."""
    notices: list[str] = field(default_factory=list)
    """What the user should know of what the stage reads; the manifest and the report show it."""
    said: set[str] = field(default_factory=set)
    """Notices of the whole run: stages that read the same file say them once."""
    rank: int = 0
    """Of this process, if the stage runs in several: only rank 0 writes files."""
    budget: Budget | None = None
    """What the stage's teachers may spend together with those of other jobs; None outside of pipelines."""

    @cached_property
    def images(self) -> ImageStore:
        """The images of the run's rows."""
        from easydistill.data.images.store import FOLDER, ImageStore

        return ImageStore(self.run_directory / FOLDER)

    @cached_property
    def image_sources(self) -> SourceRecord:
        """The image files beside the rows that the stage reads. The runner writes them down."""
        from easydistill.data.images.sources import SourceRecord

        return SourceRecord()

    def notice(self, notices: Iterable[str]) -> None:
        """Say what the user should know, and record it."""
        for text in notices:
            if text not in self.notices:
                self.notices.append(text)
            if text not in self.said:
                self.said.add(text)
                self.reporter.say(f"  note: {text}")

    def keep_rejected(self, rejected: Iterable[Rejection]) -> None:
        """Write the rejected rows now, so that they are on disk even if the stage fails."""
        if self.rank > 0:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        write_jsonl(self.directory / REJECTED, (self.redactor.value(rejection.as_row()) for rejection in rejected))

    def input_path(self, stage: str, name: str) -> Path:
        """Path of a file that an earlier stage wrote."""
        return self.inputs[stage].directory / name


@dataclass(frozen=True)
class StageResult:
    """What a stage has produced."""

    outputs: Sequence[str]
    """Files inside the stage's directory."""
    rows: RowCounts = field(default_factory=RowCounts)
    rejected: Sequence[Rejection] = ()
    tokens: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """How much a stage computes, or asks, as rates of earlier runs count it."""

    kind: str
    """What is done, in words: rates of the same kind are compared."""
    amount: float
    """Floating-point operations by the usual count, or calls to a server."""
    on: str
    """`cpu`, `gpu`, or the server."""


@dataclass(frozen=True)
class Estimate:
    """What `plan` can say about a stage without running it."""

    rows: int | None = None
    done_rows: int | None = None
    calls: int | None = None
    calls_at_most: int | None = None
    """Most calls, if answers decide how many more there will be."""
    tokens_at_most: int | None = None
    """Most tokens of answers."""
    prompt_tokens: tuple[int, int] | None = None
    """Low and high estimate, for the calls to come."""
    completion_tokens: tuple[int, int] | None = None
    cost: tuple[float, float] | None = None
    """Low and high estimate, in the currency of the prices."""
    from_answers: int | None = None
    """Number of earlier answers that the ranges are based on."""
    cut_answers: int | None = None
    """Earlier answers that were cut off at `max_new_tokens`, among those that were looked at."""
    disk_bytes: int | None = None
    """At its peak."""
    memory_bytes: int | None = None
    """Of a process at its peak: of its GPU if it has one, else of the machine."""
    disk_parts: Mapping[str, int] | None = None
    """`disk_bytes` by what they are for."""
    memory_parts: Mapping[str, int] | None = None
    """`memory_bytes` by what they are for."""
    work: Work | None = None
    """Of the whole stage, what is done included."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage as `plan` shows it."""

    name: str
    state: str
    """`done`, `pending`, or what it waits for."""
    estimate: Estimate
    notes: tuple[str, ...] = ()
    """What a user would not expect of it, a line each."""
    why: str = ""
    """Why it runs again."""
    seconds: float | None = None
    """How long it will take, by rates of earlier runs on this machine; None if there are none of its kind."""


@runtime_checkable
class Working(Protocol):
    """A stage that can tell how much there is to do."""

    def work(self) -> Work | None:
        """All of it, done or not; None if it is not known. Reads rows and tokenizers, no weights."""


def work_of(stage: Stage) -> Work | None:
    """How much a stage has to do, if it can tell."""
    try:
        return stage.work() if isinstance(stage, Working) else None
    except (EasyDistillError, OSError):
        # The run tells what is wrong.
        return None


def estimate_of(stage: Stage, directory: Path) -> Estimate:
    """A stage's estimate, with how much it has to do."""
    return replace(stage.estimate(directory), work=work_of(stage))


def total_of(stages: Iterable[PlannedStage]) -> Estimate:
    """What all stages take together: calls, tokens, cost and disk of all, memory of the one that takes most."""
    found = [stage.estimate for stage in stages]
    asking = [estimate for estimate in found if estimate.calls]
    # Models on this machine have no price.
    priced = [estimate.cost for estimate in asking if estimate.cost is not None]
    return Estimate(
        calls=sum(estimate.calls_at_most or estimate.calls or 0 for estimate in asking) if asking else None,
        prompt_tokens=_summed([estimate.prompt_tokens for estimate in asking]),
        completion_tokens=_summed([estimate.completion_tokens for estimate in asking]),
        cost=(sum(low for low, _ in priced), sum(high for _, high in priced)) if priced else None,
        disk_bytes=sum(sizes) if (sizes := [size for each in found if (size := each.disk_bytes)]) else None,
        memory_bytes=max((size for each in found if (size := each.memory_bytes)), default=None),
    )


def _summed(ranges: Sequence[tuple[int, int] | None]) -> tuple[int, int] | None:
    known = [ends for ends in ranges if ends is not None]
    return (sum(low for low, _ in known), sum(high for _, high in known)) if known else None


@dataclass(frozen=True)
class Previewed:
    """What a stage would send to a model, or a row that it would read, as `preview` shows it."""

    stage: str
    role: str = ""
    """The model that is asked: `teacher`, `judge`, `student`; empty if none is."""
    row: str = ""
    """Id of the row that it is made from, if any."""
    messages: Sequence[Mapping[str, Any]] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Temperature and the like, as sent."""
    note: str = ""


@runtime_checkable
class Previewing(Protocol):
    """A stage that can show what it would ask."""

    def preview(self, limit: int) -> list[Previewed]:
        """The first questions of the first `limit` rows, as they would be sent."""


def preview_of(stage: Stage, limit: int) -> list[Previewed]:
    """What a stage would ask about its first rows; empty if it asks no model."""
    return stage.preview(limit) if isinstance(stage, Previewing) else []


def notes_of(stage: Stage) -> tuple[str, ...]:
    """What a user would not expect of a stage that has not run."""
    return tuple(stage.foretell()) if isinstance(stage, Foretelling) else ()


def planned_stage(stage: Stage, directory: Path, standing: Standing, prefix: str = "") -> PlannedStage:
    """A stage as `plan` shows it.

    Args:
        prefix: of its name: a pipeline's job, and a dot.
    """
    kept = standing.state == KEPT
    notes = () if kept else notes_of(stage)
    estimate = estimate_of(stage, directory)
    return PlannedStage(prefix + stage.name, "done" if kept else "pending", estimate, notes, standing.why)


@runtime_checkable
class Composite(Protocol):
    """A stage that consists of stages."""

    def planned(self, directory: Path, pending: Collection[str]) -> list[PlannedStage]:
        """Its own stages, as `plan` shows them.

        Args:
            directory: the stage's own.
            pending: names of the run's other stages that are not complete.
        """


@runtime_checkable
class Dated(Protocol):
    """A stage that may depend on the date of the run."""

    def shows_date(self) -> bool:
        """Whether it does: whether its chat template writes the date. Loads nothing."""


FORETOLD = 2000
"""Rows of a file that are looked at before a run."""


def lines_of(read: Callable[[int], Reading]) -> list[str]:
    """What a user would not expect of how a stage's rows are read; `read` gives at most as many as it is told."""
    try:
        return read(FORETOLD).lines()
    except EasyDistillError:
        # The run tells why the rows cannot be read.
        return []


@runtime_checkable
class Foretelling(Protocol):
    """A stage that can tell, before anything is paid or trained, what a user would not expect of its rows."""

    def foretell(self) -> list[str]:
        """What there is to know, a line each. Reads rows, and models' tokenizers but no weights."""


@runtime_checkable
class Examining(Protocol):
    """A stage with more checks than `preflight`, which open models' files."""

    def examine(self) -> list[ConfigIssue]:
        """Problems that would make the run worthless. Called once before any stage starts, for incomplete stages."""


class Stage(Protocol):
    """A step from typed config and input artifacts to one output artifact."""

    @property
    def name(self) -> str:
        """Unique within its job; names the stage's directory."""

    @property
    def inputs(self) -> Sequence[str]:
        """Names of the earlier stages whose artifacts it reads."""

    @property
    def offers(self) -> Sequence[str]:
        """Artifacts that a later job of a pipeline may refer to, as `@job/artifact`."""

    @property
    def classifies(self) -> bool:
        """Whether the model that it makes is a classifier, such as a reward model, not a language model."""

    def preflight(self) -> list[ConfigIssue]:
        """Problems that would make `run` fail and can be found cheaply now: missing files, missing extras."""

    def fingerprint(self) -> dict[str, Any]:
        """Everything except the inputs that can change the output, as JSON. Must not load heavy libraries."""

    def estimate(self, directory: Path) -> Estimate:
        """Rows, calls, tokens, disk space and memory, as far as they are known before running."""

    def run(self, context: StageContext) -> StageResult:
        """Do the work, resuming from what an earlier attempt left in the directory."""
