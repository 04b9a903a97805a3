"""Where the rows went, what each stage took, and why rows were rejected."""

from __future__ import annotations

from easydistill.asking.label import CUT_ANSWERS
from easydistill.data.numbers import as_float
from easydistill.engine.stage import kind_of
from easydistill.report.collect import Facts, RejectedReason, StageFacts
from easydistill.report.document import Cell, Column, Row, Step, Table, row
from easydistill.report.figures import or_missing, plural, time_of
from easydistill.report.values import as_dict, as_int

_NAMES = {"label": "Answered by the teacher"}
_STATES = {"done": "ran in the last attempt", "skipped": "complete from an earlier attempt"}
_INCOMPLETE = "left by an attempt that did not finish, or by an earlier config"


def funnel(facts: Facts) -> list[Step]:
    """Rows from reading to training, as far as stages are complete."""
    steps: list[tuple[str, int, str, StageFacts | None]] = []
    if facts.rows.entered:
        steps.append(("Read", facts.rows.entered, "kept", None))
    for stage in facts.stages:
        if kind_of(stage.name) == "train" and not facts.is_pipeline:
            trained, heldout = (as_int(stage.metrics.get(name)) for name in ("train_rows", "heldout_rows"))
            if trained is not None:
                steps.append(("Trained on", trained, "kept", stage))
            if heldout is not None:
                steps.append(("Held out for evaluation", heldout, "aside", None))
        elif stage.left is not None and (facts.is_pipeline or _changes_rows(stage)):
            named = "" if facts.is_pipeline else _NAMES.get(stage.name, "")
            steps.append((named or f"After {stage.name}", stage.left, "kept", stage))
    most = max((rows for _, rows, _, _ in steps), default=0)
    return [_step(*step, most) for step in steps] if most else []


def _changes_rows(stage: StageFacts) -> bool:
    """Evaluation, rollouts and exports repeat rows; scoring keeps them unless it rejects some."""
    if "exported" in stage.metrics:
        return False
    return stage.name not in {"evaluate", "rollout", "tasks", "speed"} and (
        stage.name != "score" or stage.left != stage.entered
    )


def _step(name: str, rows: int, kind: str, stage: StageFacts | None, most: int) -> Step:
    lost = {} if stage is None else stage.rejected
    bars = ((rows / most, kind), (sum(lost.values()) / most, "lost"))
    return Step(name, rows, bars, tuple(sorted(lost.items(), key=lambda item: -item[1])))


def rejected_words(facts: Facts) -> str:
    """How many rows were rejected, and how many may be."""
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
    """Rows that lost the end of their answer in training, and answers that the teacher did not end."""
    return " ".join(filter(None, (_trained_words(facts), _cut_words(facts))))


def _cut_words(facts: Facts) -> str:
    counts = (as_int(stage.metrics.get(CUT_ANSWERS)) for stage in facts.stages)
    cut = sum(filter(None, counts))
    if not cut:
        return ""
    were = "answer was" if cut == 1 else "answers were"
    return f"{cut:,} {were} cut off at inference.max_new_tokens; no end is learned behind a cut."


def _trained_words(facts: Facts) -> str:
    rows = as_int(facts.train.get("truncated_rows"))
    if not rows:
        return ""
    length = as_int(facts.setting("training.max_length"))
    limit = "" if length is None else f" of {length:,} tokens"
    verb, whose = ("was", "its answer") if rows == 1 else ("were", "their answers")
    return f"{plural(rows, 'row')} {verb} longer than the limit{limit} and lost the end of {whose}."


def remembered_words(facts: Facts) -> str:
    """What was not asked because the answers cache had it, and what it would have cost; empty if nothing was."""
    bills = [
        bill
        for stage in facts.stages
        for name, value in stage.metrics.items()
        if name.startswith("spent") and (bill := as_dict(value)).get("answers_from_cache")
    ]
    if not bills:
        return ""
    answers, tokens = (sum(as_int(bill.get(key)) or 0 for bill in bills) for key in _SAVED)
    costs = [cost for bill in bills if (cost := as_float(bill.get("saved_cost"))) is not None]
    money = f", or {sum(costs):.6g} at the prices of the config" if costs else ""
    came = "answer came" if answers == 1 else "answers came"
    return (
        f"{answers:,} {came} from the answers cache and cost nothing; asking would have taken {tokens:,} tokens{money}."
    )


_SAVED = ("answers_from_cache", "saved_tokens")


def stage_table(facts: Facts) -> Table:
    """Time, rows and tokens of each stage, in order."""
    longest = max((stage.seconds or 0.0 for stage in facts.stages), default=0.0)
    heads = (Column("State", "", "md"), Column("Time"), Column("Rows", "", "md"), Column("Tokens", "tokens"))
    return Table("Stage", heads, tuple(_stage_row(stage, longest) for stage in facts.stages), style="times")


def _stage_row(stage: StageFacts, longest: float) -> Row:
    state = _STATES.get(stage.status, stage.status)
    rows = "" if stage.entered is None else f"{or_missing(stage.entered)} → {or_missing(stage.left)}"
    tokens = tuple(f"{tokens:,} {kind}" for kind, tokens in stage.tokens.items())
    return row(
        stage.name,
        state,
        time_of(stage.seconds),
        rows,
        Cell(", ".join(tokens), lines=tokens) if tokens else Cell("n/a: none counted", style="soft"),
        notes=[f"{state}; rows {rows}" if rows else state],
        bars=(((stage.seconds or 0.0) / longest, "kept"),) if longest else (),
    )


def rejected_table(facts: Facts) -> Table:
    """Why rows were rejected, how often, and in which stage."""
    most = max((item.count for item in facts.rejected), default=0) or 1
    heads = (Column("Stage", ""), Column("Rows"), Column("Example", "", "md"))
    rows = tuple(_rejected_row(item, most) for item in facts.rejected)
    return Table("Reason", heads, rows, style="times", names="code", note=" ({})")


def _rejected_row(item: RejectedReason, most: int) -> Row:
    example = item.examples[0].detail if item.examples else ""
    if len(example) > 200:
        example = f"{example[:197]}..."
    notes = [] if item.complete else [_INCOMPLETE]
    return row(item.reason, item.stage, f"{item.count:,}", example, notes=notes, bars=((item.count / most, "lost"),))


def total_seconds(facts: Facts) -> float | None:
    """Time spent in complete stages over all attempts; before the first is complete, that of the last attempt."""
    known = [stage.seconds for stage in facts.stages if stage.seconds is not None]
    return sum(known) if known else facts.summary.seconds
