"""The facts of a run, read from its directory into frozen records. What is missing stays missing.

A run directory may still hold files of stages that ran with an earlier config. `summary.json` says which stages are
complete as configured now; only their files count as results of this run.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.asking.label import IMAGE_ROWS
from easydistill.config.pipeline import PIPELINE
from easydistill.data.images.store import FOLDER
from easydistill.data.numbers import as_float
from easydistill.engine.stage import REJECTED, kind_of
from easydistill.report.curve import Curve, read_curve
from easydistill.report.disagreement import Disagreement, read_disagreement
from easydistill.report.document import Block, Sample
from easydistill.report.samples import Turn, optional_text, rejected_row, rows_with_images, turns_of
from easydistill.report.synthesis import Synthesis, is_synthesis, read_synthesis
from easydistill.report.thumbnails import thumbnails_of
from easydistill.report.values import as_dict, as_int, as_text, dig, json_lines, json_object, record

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
    """`done`, `failed`, `interrupted`, `running`; `unknown` without a readable summary."""
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
    notices: tuple[str, ...]
    """What the user should know of what the stage has read."""


@dataclass(frozen=True)
class Rows:
    """The job's rows: read and rejected."""

    entered: int | None
    rejected: int | None


@dataclass(frozen=True)
class MetricRow:
    """A metric before and after training."""

    name: str
    before: Any
    after: Any
    note: str
    """Why a value is missing, in the evaluation's words."""

    @property
    def pair(self) -> tuple[float, float] | None:
        """Both values, if both are finite numbers."""
        before, after = as_float(self.before), as_float(self.after)
        return None if before is None or after is None else (before, after)

    @property
    def change(self) -> float | None:
        """(after − before) / |before|; None where that is undefined or, as between opposite signs, misleading."""
        if self.pair is None or self.pair[0] == 0 or self.pair[0] * self.pair[1] < 0:
            return None
        before, after = self.pair
        return (after - before) / abs(before)


@dataclass(frozen=True)
class RejectedReason:
    """A reason for which a stage rejected rows, how often it did, and the first of those rows."""

    stage: str
    reason: str
    count: int
    examples: tuple[Sample, ...]
    complete: bool
    """False if the stage has not finished as configured now: these rows are not counted in the run's."""


@dataclass(frozen=True)
class Answer:
    """A held-out prompt and the answers to it."""

    id: str
    prompt: tuple[Turn, ...]
    teacher: str | None
    before: str | None
    after: str | None
    rouge_l_before: float | None
    rouge_l_after: float | None
    images: tuple[str, ...] = ()
    """Thumbnails, by their paths from the report."""


@dataclass(frozen=True)
class Answers(Block):
    """Prompts, each with the answers of the teacher and of the student before and after training."""

    items: tuple[Answer, ...]
    missing: str
    """Why an answer is missing."""
    reference: str = "Teacher"
    """Who gave the answers that the student's are shown beside."""


@dataclass(frozen=True)
class Facts:
    """Everything the report is made from."""

    directory: Path
    summary: Summary
    rows: Rows
    stages: tuple[StageFacts, ...]
    metrics: tuple[MetricRow, ...]
    curve: Curve
    rejected: tuple[RejectedReason, ...]
    """Without those of synthesis stages, which are in `synthesis`."""
    synthesis: tuple[Synthesis, ...]
    pictured: tuple[Sample, ...]
    """Labelled rows with images."""
    answers: tuple[Answer, ...]
    answers_total: int
    disagreement: Disagreement | None
    config: dict[str, Any]
    environment: dict[str, Any]
    has_student: bool

    @property
    def is_pipeline(self) -> bool:
        """Whether its stages are jobs, whose names are the user's own and say nothing of what they do."""
        return self.summary.job_type == PIPELINE

    def stage(self, kind: str) -> StageFacts | None:
        """The stage of that kind; in a job of several rounds, the last one."""
        if self.is_pipeline:
            return None
        return next((stage for stage in reversed(self.stages) if kind_of(stage.name) == kind), None)

    @property
    def train(self) -> dict[str, Any]:
        """The train stage's metrics; empty if it is not complete."""
        stage = self.stage("train")
        return {} if stage is None else stage.metrics

    def setting(self, path: str) -> Any:
        """A value of the resolved config by its dotted path, or None."""
        return dig(self.config, path)

    def section(self, path: str) -> dict[str, Any]:
        """A section of the resolved config by its dotted path; empty if there is none."""
        return as_dict(self.setting(path))

    @property
    def scores(self) -> bool:
        """Whether the student became a reward model, which scores answers and writes none."""
        return bool(self.section("reward_model"))

    @property
    def sees(self) -> bool:
        """Whether the student sees images."""
        return (self.directory / "student" / "processor_config.json").is_file()

    @property
    def on_pairs(self) -> bool:
        """Whether the student learned from pairs of answers."""
        return bool(self.section("preference")) or self.scores

    @property
    def by_rewards(self) -> bool:
        """Whether the student learned from rewards for its own answers."""
        return bool(self.section("rewards"))

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher answers the job's prompts, rather than the rows being labelled already."""
        if self.setting("synthesis") is not None and self.setting("student_inference") is not None:
            # A job whose student answers may do without a teacher.
            return any(self.setting(path) is not None for path in ("inference.base_url", "models.teacher"))
        return self.setting("inference") is not None and self.setting("dataset.instruction_path") is not None


def collect(directory: Path) -> Facts:
    """Read what a run has left in its directory so far."""
    summary = json_object(directory / "summary.json")
    stages = tuple(_stage(name, as_dict(value)) for name, value in as_dict(summary.get("stages")).items())
    complete = [directory / "stages" / f"{number}-{stage.name}" for number, stage in enumerate(stages, start=1)]
    answers, total = _answers(directory, complete)
    return Facts(
        directory=directory,
        summary=record(
            Summary,
            summary,
            name=as_text(summary.get("name")) or directory.resolve().name,
            status=as_text(summary.get("status")) or "unknown",
        ),
        rows=record(Rows, summary.get("rows")),
        stages=stages,
        metrics=_metrics(as_dict(summary.get("metrics"))),
        curve=read_curve(directory / "metrics.jsonl"),
        rejected=tuple(_rejected(directory, stages, complete)),
        synthesis=tuple(
            read_synthesis(stage.name, stage.metrics, stage.tokens, folder)
            for stage, folder in zip(stages, complete, strict=True)
            if is_synthesis(stage.metrics)
        ),
        pictured=tuple(_pictured(directory, stages, complete)),
        answers=answers,
        answers_total=total,
        disagreement=read_disagreement(complete),
        config=json_object(directory / "config.resolved.json"),
        environment=json_object(directory / "environment.json"),
        has_student=(directory / "student" / "config.json").is_file(),
    )


def _pictured(directory: Path, stages: tuple[StageFacts, ...], complete: list[Path]) -> Iterator[Sample]:
    for stage, folder in zip(stages, complete, strict=True):
        made = is_synthesis(stage.metrics) and (directory / FOLDER).is_dir()
        if made or as_int(stage.metrics.get(IMAGE_ROWS)):
            yield from rows_with_images(folder, directory)


def _stage(name: str, value: dict[str, Any]) -> StageFacts:
    return record(StageFacts, value | {"rejected": None} | as_dict(value.get("rows")), name=name)


def _metrics(metrics: dict[str, Any]) -> tuple[MetricRow, ...]:
    before, after, notes = (as_dict(metrics.get(name)) for name in ("before", "after", "notes"))
    names = dict.fromkeys([*after, *before])
    return tuple(MetricRow(name, before.get(name), after.get(name), as_text(notes.get(name))) for name in names)


def _rejected(directory: Path, stages: tuple[StageFacts, ...], complete: list[Path]) -> Iterator[RejectedReason]:
    for stage, folder in zip(stages, complete, strict=True):
        if not is_synthesis(stage.metrics):
            _, examples = _read_rejected(folder / REJECTED, stage.rejected)
            yield from _reasons(stage.name, stage.rejected, examples, complete=True)
    for path in sorted(directory.glob(f"stages/*/{REJECTED}")):
        if path.parent not in complete:
            name = path.parent.name.partition("-")[2] or path.parent.name
            yield from _reasons(name, *_read_rejected(path, None), complete=False)


def _reasons(
    stage: str, counts: dict[str, int], examples: dict[str, list[Sample]], *, complete: bool
) -> Iterator[RejectedReason]:
    for reason, count in sorted(counts.items(), key=lambda item: -item[1]):
        yield RejectedReason(stage, reason, count, tuple(examples.get(reason, ())), complete)


def _read_rejected(path: Path, known: dict[str, int] | None) -> tuple[dict[str, int], dict[str, list[Sample]]]:
    """Rows seen and first examples, by reason. Where the counts are known, it reads no further than the examples."""
    seen: Counter[str] = Counter()
    examples: dict[str, list[Sample]] = {}
    wanted = {reason: min(count, EXAMPLES_PER_REASON) for reason, count in (known or {}).items() if count}
    for row in json_lines(path) if wanted or known is None else ():
        reason = as_text(row.get("reason"))
        seen[reason] += 1
        if seen[reason] <= EXAMPLES_PER_REASON:
            examples.setdefault(reason, []).append(rejected_row(row, TEXT_LIMIT, row.get("raw")))
        if seen[reason] == wanted.get(reason):
            del wanted[reason]
            if not wanted:
                break
    return seen, examples


def _answers(directory: Path, folders: list[Path]) -> tuple[tuple[Answer, ...], int]:
    rows = itertools.chain.from_iterable(json_lines(folder / ANSWERS_FILE) for folder in folders)
    kept = tuple(_answer(row, directory) for row in itertools.islice(rows, ANSWERS_KEPT))
    return kept, len(kept) + sum(1 for _ in rows)


def _answer(row: dict[str, Any], directory: Path) -> Answer:
    prompt = row.get("prompt")
    images = thumbnails_of(map(as_dict, prompt), directory) if isinstance(prompt, list) else ()
    texts = {name: optional_text(row.get(name)) for name in ("teacher", "before", "after")}
    return record(Answer, row, prompt=turns_of(prompt), images=images, **texts)
