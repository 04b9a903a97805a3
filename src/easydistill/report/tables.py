"""The report's tables that need more than formatting: where the rows went, and what each stage took."""

from __future__ import annotations

from dataclasses import dataclass

from easydistill.engine.stage import kind_of
from easydistill.report.charts import meter
from easydistill.report.collect import Facts, StageFacts
from easydistill.report.values import as_float, as_int
from easydistill.report.words import count, time_of

EVALUATE = "evaluate"
_NAMES = {"label": "Answered by the teacher"}
_STATES = {"done": "ran in the last attempt", "skipped": "complete from an earlier attempt"}


@dataclass(frozen=True)
class FunnelStep:
    """Rows at one point of the job."""

    name: str
    rows: int
    bar: str
    lost: tuple[tuple[str, int], ...]
    """Reason → rows rejected on the way here."""


@dataclass(frozen=True)
class StageLine:
    """What a stage took and gave."""

    name: str
    state: str
    time: str
    bar: str
    rows: str
    tokens: tuple[str, ...]


def funnel(facts: Facts) -> list[FunnelStep]:
    """Rows from reading to training, as far as stages are complete. Evaluation only repeats rows, so it is left out."""
    steps: list[tuple[str, int, str, StageFacts | None]] = []
    if facts.rows.entered:
        steps.append(("Read", facts.rows.entered, "kept", None))
    for stage in facts.stages:
        if kind_of(stage.name) == "train":
            trained, heldout = (as_int(stage.metrics.get(name)) for name in ("train_rows", "heldout_rows"))
            if trained is not None:
                steps.append(("Trained on", trained, "kept", stage))
            if heldout is not None:
                steps.append(("Held out to measure with", heldout, "aside", None))
        elif (
            stage.name not in {EVALUATE, "rollout"}
            and stage.left is not None
            and (stage.name != "score" or stage.left != stage.entered)
        ):
            steps.append((_NAMES.get(stage.name, f"After {stage.name}"), stage.left, "kept", stage))
    most = max((rows for _, rows, _, _ in steps), default=0)
    if not most:
        return []
    return [FunnelStep(name, rows, _bar(rows, kind, stage, most), _lost(stage)) for name, rows, kind, stage in steps]


def _lost(stage: StageFacts | None) -> tuple[tuple[str, int], ...]:
    if stage is None:
        return ()
    return tuple(sorted(stage.rejected.items(), key=lambda item: -item[1]))


def _bar(rows: int, kind: str, stage: StageFacts | None, most: int) -> str:
    lost = sum(stage.rejected.values()) if stage is not None else 0
    return meter((rows / most, kind), (lost / most, "lost"))


def rejected_words(facts: Facts) -> str:
    """How many rows were rejected, and whether that is too many."""
    rows = facts.rows
    if rows.rejected is None or not rows.entered:
        return ""
    if rows.rejected == 0:
        within = any(stage.rejected for stage in facts.stages if stage.name.startswith("curriculum"))
        return "No row that came in was rejected; rounds leave rows out." if within else "No row was rejected."
    allowed = as_float(facts.setting("dataset.max_rejected_share"))
    limit = "" if allowed is None else f"; up to {allowed:.0%} are allowed"
    return f"{rows.rejected:,} of {rows.entered:,} rows were rejected ({rows.rejected / rows.entered:.1%}){limit}."


def truncated_words(facts: Facts) -> str:
    """Rows that lost the end of their answer in training."""
    rows = as_int(facts.train.get("truncated_rows"))
    if not rows:
        return ""
    length = as_int(facts.setting("training.max_length"))
    limit = "" if length is None else f" of {length:,} tokens"
    lost = (
        "row was longer than the limit{} and lost the end of its answer."
        if rows == 1
        else ("rows were longer than the limit{} and lost the end of their answers.")
    )
    return f"{rows:,} {lost.format(limit)}"


def stage_lines(facts: Facts) -> list[StageLine]:
    """One line a stage, in order."""
    longest = max((stage.seconds or 0.0 for stage in facts.stages), default=0.0)
    return [
        StageLine(
            name=stage.name,
            state=_STATES.get(stage.status, stage.status),
            time=time_of(stage.seconds),
            bar=meter(((stage.seconds or 0.0) / longest, "kept")) if longest else "",
            rows="" if stage.entered is None else f"{count(stage.entered)} → {count(stage.left)}",
            tokens=tuple(f"{tokens:,} {kind}" for kind, tokens in stage.tokens.items()),
        )
        for stage in facts.stages
    ]


def total_seconds(facts: Facts) -> float | None:
    """Time spent in complete stages over all attempts; before the first is complete, the attempt's own time."""
    known = [stage.seconds for stage in facts.stages if stage.seconds is not None]
    return sum(known) if known else facts.summary.seconds
