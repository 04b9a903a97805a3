"""Facts of a run from its directory, as frozen records. What is missing stays missing; nothing is made up.

A run directory outlives a config: it may still hold files of stages that ran with an earlier one. `summary.json` says
which stages are complete as configured now, and only their files count as results of this run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.data.files import read_json
from easydistill.engine.stage import REJECTED, kind_of
from easydistill.report.curve import Curve, read_curve
from easydistill.report.disagreement import Disagreement, read_disagreement
from easydistill.report.synthesis import Synthesis, is_synthesis, read_synthesis
from easydistill.report.turns import TURN_LIMIT, Turn, turns_of
from easydistill.report.values import as_dict, as_float, as_int, as_text, dig, json_lines, shown

EXAMPLES_PER_REASON = 5
TEXT_LIMIT = 2000
ANSWERS_KEPT = 200
ANSWERS_FILE = "answers.jsonl"


@dataclass(frozen=True)
class Summary:
    """The head of `summary.json`."""

    name: str
    job_type: str
    status: str
    """`done`, `failed`, `interrupted`, `running`; `unknown` where there is no readable summary."""
    exit_code: int | None
    error: str
    started: str
    finished: str
    seconds: float | None
    """Wall time of the last attempt; the stages' own times cover all attempts."""
    resume: str


@dataclass(frozen=True)
class StageFacts:
    """A stage that is complete as configured now."""

    name: str
    status: str
    seconds: float | None
    entered: int | None
    left: int | None
    rejected: dict[str, int]
    tokens: dict[str, int]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """Rows as the job's user counts them."""

    entered: int | None
    accepted: int | None
    rejected: int | None
    rejected_share: float | None
    rejected_by_reason: dict[str, int]


@dataclass(frozen=True)
class MetricRow:
    """A metric before and after training."""

    name: str
    before: Any
    after: Any
    note: str
    """Why a value is missing, as the evaluation put it."""

    @property
    def pair(self) -> tuple[float, float] | None:
        """Both values, where both are finite numbers."""
        before, after = as_float(self.before), as_float(self.after)
        return None if before is None or after is None else (before, after)

    @property
    def change(self) -> float | None:
        """(after − before) / |before|; None where there is no such thing, as between numbers of different sign."""
        if self.pair is None or self.pair[0] == 0 or self.pair[0] * self.pair[1] < 0:
            return None
        before, after = self.pair
        return (after - before) / abs(before)


@dataclass(frozen=True)
class Example:
    """One rejected row."""

    id: str
    detail: str
    attempts: int | None
    raw: str


@dataclass(frozen=True)
class RejectedReason:
    """One reason for which a stage rejected rows, how often, and some of the rows."""

    stage: str
    reason: str
    count: int
    examples: tuple[Example, ...]
    complete: bool
    """False for files of a stage that has not finished as configured now: they do not count."""


@dataclass(frozen=True)
class Answer:
    """A held-out prompt and the answers to it."""

    id: str
    prompt: tuple[Turn, ...]
    teacher: str | None
    before: str | None
    after: str | None
    score_before: float | None
    score_after: float | None


@dataclass(frozen=True)
class Facts:
    """Everything the report tells."""

    directory: Path
    summary: Summary
    rows: Rows
    stages: tuple[StageFacts, ...]
    metrics: tuple[MetricRow, ...]
    curve: Curve
    rejected: tuple[RejectedReason, ...]
    """Those of synthesis stages are in `synthesis`."""
    synthesis: tuple[Synthesis, ...]
    answers: tuple[Answer, ...]
    answers_total: int
    disagreement: Disagreement | None
    config: dict[str, Any]
    environment: dict[str, Any]
    has_student: bool

    def stage(self, name: str) -> StageFacts | None:
        """The stage of that name; of a job in rounds, that of its last one."""
        return next((stage for stage in reversed(self.stages) if kind_of(stage.name) == name), None)

    @property
    def train(self) -> dict[str, Any]:
        """What the train stage measured; empty where it is not complete."""
        stage = self.stage("train")
        return {} if stage is None else stage.metrics

    def setting(self, path: str) -> Any:
        """A value of the resolved config by its dotted path; None where it has none."""
        return dig(self.config, path)


def collect(directory: Path) -> Facts:
    """Read what a run has left in its directory so far."""
    summary = _object(directory / "summary.json")
    stages = tuple(_stage(name, as_dict(value)) for name, value in as_dict(summary.get("stages")).items())
    complete = [directory / "stages" / f"{number}-{stage.name}" for number, stage in enumerate(stages, start=1)]
    answers, total = _answers(complete)
    return Facts(
        directory=directory,
        summary=_head(summary, directory),
        rows=_rows(as_dict(summary.get("rows"))),
        stages=stages,
        metrics=_metrics(as_dict(summary.get("metrics"))),
        curve=read_curve(directory / "metrics.jsonl"),
        rejected=tuple(_rejected(directory, stages, complete)),
        synthesis=tuple(
            read_synthesis(stage.name, stage.metrics, stage.tokens, folder)
            for stage, folder in zip(stages, complete, strict=True)
            if is_synthesis(stage.metrics)
        ),
        answers=answers,
        answers_total=total,
        disagreement=read_disagreement(complete),
        config=_object(directory / "config.resolved.json"),
        environment=_object(directory / "environment.json"),
        has_student=(directory / "student" / "config.json").is_file(),
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        return as_dict(read_json(path))
    except (OSError, ValueError):
        return {}


def _head(summary: dict[str, Any], directory: Path) -> Summary:
    return Summary(
        name=as_text(summary.get("name")) or directory.resolve().name,
        job_type=as_text(summary.get("job_type")),
        status=as_text(summary.get("status")) or "unknown",
        exit_code=as_int(summary.get("exit_code")),
        error=as_text(summary.get("error")),
        started=as_text(summary.get("started")),
        finished=as_text(summary.get("finished")),
        seconds=as_float(summary.get("seconds")),
        resume=as_text(summary.get("resume")),
    )


def _counts(value: Any) -> dict[str, int]:
    counts = ((name, as_int(count)) for name, count in as_dict(value).items())
    return {name: count for name, count in counts if count is not None}


def _stage(name: str, value: dict[str, Any]) -> StageFacts:
    rows = as_dict(value.get("rows"))
    return StageFacts(
        name=name,
        status=as_text(value.get("status")),
        seconds=as_float(value.get("seconds")),
        entered=as_int(rows.get("entered")),
        left=as_int(rows.get("left")),
        rejected=_counts(rows.get("rejected")),
        tokens=_counts(value.get("tokens")),
        metrics=as_dict(value.get("metrics")),
    )


def _rows(rows: dict[str, Any]) -> Rows:
    return Rows(
        entered=as_int(rows.get("entered")),
        accepted=as_int(rows.get("accepted")),
        rejected=as_int(rows.get("rejected")),
        rejected_share=as_float(rows.get("rejected_share")),
        rejected_by_reason=_counts(rows.get("rejected_by_reason")),
    )


def _metrics(metrics: dict[str, Any]) -> tuple[MetricRow, ...]:
    before, after, notes = (as_dict(metrics.get(name)) for name in ("before", "after", "notes"))
    names = dict.fromkeys([*after, *before])
    return tuple(MetricRow(name, before.get(name), after.get(name), as_text(notes.get(name))) for name in names)


def _rejected(directory: Path, stages: tuple[StageFacts, ...], complete: list[Path]) -> Iterator[RejectedReason]:
    for stage, folder in zip(stages, complete, strict=True):
        if is_synthesis(stage.metrics):
            continue
        found = _read_rejected(folder / REJECTED, stage.rejected)
        for reason, count in sorted(stage.rejected.items(), key=lambda item: -item[1]):
            _, examples = found.get(reason, (0, []))
            yield RejectedReason(stage.name, reason, count, tuple(examples), complete=True)
    for path in sorted(directory.glob(f"stages/*/{REJECTED}")):
        if path.parent in complete:
            continue
        for reason, (count, examples) in sorted(_read_rejected(path, None).items(), key=lambda item: -item[1][0]):
            name = path.parent.name.partition("-")[2] or path.parent.name
            yield RejectedReason(name, reason, count, tuple(examples), complete=False)


def _read_rejected(path: Path, known: dict[str, int] | None) -> dict[str, tuple[int, list[Example]]]:
    """Reason → (rows seen, first examples). Reads no further than needed where the counts are known already."""
    found: dict[str, tuple[int, list[Example]]] = {}
    missing = {} if known is None else {name: min(count, EXAMPLES_PER_REASON) for name, count in known.items()}
    if known is not None and not any(missing.values()):
        return found
    for row in json_lines(path):
        reason = as_text(row.get("reason"))
        count, examples = found.get(reason, (0, []))
        if len(examples) < EXAMPLES_PER_REASON:
            examples.append(_example(row))
            if missing.get(reason, 0) > 0:
                missing[reason] -= 1
        found[reason] = (count + 1, examples)
        if known is not None and not any(missing.values()):
            break
    return found


def _example(row: dict[str, Any]) -> Example:
    raw = "" if row.get("raw") is None else shown(row["raw"], TEXT_LIMIT)
    return Example(
        as_text(row.get("id")), shown(as_text(row.get("detail")), TEXT_LIMIT), as_int(row.get("attempts")), raw
    )


def _answers(folders: list[Path]) -> tuple[tuple[Answer, ...], int]:
    kept: list[Answer] = []
    total = 0
    for folder in folders:
        for row in json_lines(folder / ANSWERS_FILE):
            total += 1
            if len(kept) < ANSWERS_KEPT:
                kept.append(_answer(row))
    return tuple(kept), total


def _answer(row: dict[str, Any]) -> Answer:
    return Answer(
        id=as_text(row.get("id")),
        prompt=turns_of(row.get("prompt")),
        teacher=_optional(row.get("teacher")),
        before=_optional(row.get("before")),
        after=_optional(row.get("after")),
        score_before=as_float(row.get("rouge_l_before")),
        score_after=as_float(row.get("rouge_l_after")),
    )


def _optional(value: Any) -> str | None:
    return None if value is None else shown(value, TURN_LIMIT)
