"""The report on a synthesis stage: sentences, tables, and the last lines of a run on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from easydistill.asking.outputs import LABELED_JSON
from easydistill.data.numbers import as_float
from easydistill.report.collect import Facts
from easydistill.report.costs import HEADS, bill_cells, bill_notes, bills_words, total
from easydistill.report.document import Column, Row, Step, Table, columns, row
from easydistill.report.figures import MISSING, in_words, or_missing, plural, share
from easydistill.report.synthesis import Spent, Synthesis, is_synthesis, read_synthesis
from easydistill.report.values import as_counts, as_dict, as_int, as_text, dig, json_object
from easydistill.synthesis.stage import CARD

REASONS_NAMED = 3
_UNITS = {"1": "words", "2": "word pairs", "3": "runs of three words"}


def title(stage: Synthesis, among: Sequence[Synthesis] = ()) -> str:
    """A stage's heading; it names the stage if its operator ran more than once."""
    twice = sum(other.operator == stage.operator for other in among) > 1
    return f"{in_words(stage.operator)} ({stage.stage})" if twice else in_words(stage.operator)


# --- rows -------------------------------------------------------------------------------------------------------


def funnel_steps(stage: Synthesis) -> list[Step]:
    """Candidates, what each check left, and what was accepted."""
    entered, accepted = stage.entered, stage.accepted
    if not entered or accepted is None:
        return []
    checks = [
        Step(
            in_words(check.reason),
            check.left,
            ((check.left / entered, "kept"), (check.lost / entered, "lost")),
            note=f"{check.lost:,} lost, {share(check.lost, check.entered)} of those that reached this check",
        )
        for check in stage.checks
    ]
    accepted_step = Step("Accepted", accepted, ((accepted / entered, "after"),))
    return [Step("Candidates", entered, ((1.0, "kept"),)), *checks, accepted_step]


def outcome(stage: Synthesis) -> str:
    """How many candidates were accepted, and the main reasons for rejecting the others."""
    if stage.entered is None or stage.accepted is None or stage.lost is None:
        return ""
    verb = "was" if stage.accepted == 1 else "were"
    part = share(stage.accepted, stage.entered)
    rejected = f"; {stage.lost:,} rejected: {main_reasons(stage)}" if stage.lost else "; none was rejected"
    return f"{stage.accepted:,} of {plural(stage.entered, 'candidate')} {verb} accepted ({part}){rejected}."


def main_reasons(stage: Synthesis) -> str:
    """The reasons for most rejections, each with its number of rows."""
    by_loss = [check for check, _ in stage.rejected]
    named = [f"{in_words(check.reason).lower()} {check.lost:,}" for check in by_loss[:REASONS_NAMED]]
    others = sum(check.lost for check in by_loss[REASONS_NAMED:])
    return ", ".join([*named, *([f"other reasons {others:,}"] if others else [])])


# --- diversity --------------------------------------------------------------------------------------------------


def diversity_table(stage: Synthesis) -> Table | None:
    """Figures of the accepted rows' prompts, which direction is better, and how to read them."""
    found = stage.diversity
    if not found:
        return None
    shown = (Column("Value"), Column("Better", ""), Column("How to read it", "", "md"))
    return Table("Figure", shown, tuple(_diversity_rows(found)), style="varied")


def _diversity_rows(found: dict[str, Any]) -> Iterator[Row]:
    sampled = as_int(found.get("sampled"))
    of_sample = "" if sampled is None else f", over {plural(sampled, 'row')}"
    for order, value in as_dict(found.get("distinct")).items():
        units, number = _UNITS.get(order, f"runs of {order} words"), as_float(value)
        reading = f"{100 * (number or 0.0):.0f} of 100 {units} are distinct."
        yield _row(f"Distinct {units} (distinct-{order})", number, reading, "the prompts are too short", "higher")
    reading = f"Mean BLEU-4 of a prompt against all the others{of_sample}: 1 if the rows are copies of each other."
    overlap = as_float(found.get("self_bleu"))
    yield _row("Overlap between rows (self-BLEU)", overlap, reading, "it takes two prompts", "lower")

    middle, upper, highest = _percentiles(found.get("seed_similarity"), "p50", "p95", "p100")
    reading = f"ROUGE-L to the most similar seed, median{of_sample}: 1 is a copy of a seed, 0 shares no word with any."
    if upper is not None and highest is not None:
        tail = f"; one row in twenty is above {upper:.2f}" if sampled is not None and sampled >= 20 else ""
        reading += f" The highest value is {highest:.2f}{tail}."
    why = "measured only for operators that write new prompts"
    yield _row("Similarity to the nearest seed", middle, reading, why, "lower")

    low, middle, high, longest = _percentiles(found.get("lengths"), "p5", "p50", "p95", "p100")
    reading = ""
    if low is None or high is None or longest is None:
        middle = None
    else:
        reading = f"The median; nine in ten lie between {low:.0f} and {high:.0f}, the longest has {longest:,.0f}."
    yield _row("Length of prompts, in words", middle, reading, "nothing was measured", form=",.0f")
    rows = as_counts(found.get("languages"))
    every = as_int(found.get("of"))
    of_all = f"Of {plural(sum(rows.values()), 'prompt')}" + ("." if every is None else f", drawn from {every:,}.")
    yield _row("Prompts in Chinese", rows.get("zh", 0), of_all, form=",.0f")


def _percentiles(value: Any, *names: str) -> list[float | None]:
    return [as_float(as_dict(value).get(name)) for name in names]


def _row(
    label: str, value: float | None, reading: str, why_missing: str = "", better: str = "", form: str = ".3f"
) -> Row:
    """A figure. Shares, which have three decimals, also have a bar; counts cannot be compared that way."""
    if value is None:
        reading = f"{MISSING}: {why_missing}."
    bars = ((value, "after"),) if value is not None and form == ".3f" else ()
    return row(label, or_missing(value, form), better or "–", reading, notes=[reading], bars=bars)


# --- cost -------------------------------------------------------------------------------------------------------


def models_of(stage: Synthesis, config: dict[str, Any]) -> list[Spent]:
    """What each model cost. A judge without a section of its own is the teacher, whose costs include it."""
    shared = dig(config, "judge") is None and any(spent.role == "teacher" for spent in stage.spent)
    return [spent for spent in stage.spent if not (shared and spent.role == "judge")]


def spending_table(stage: Synthesis, facts: Facts) -> Table | None:
    """One row for each model that was asked; None if there was none."""
    found = models_of(stage, facts.config)
    rows = []
    if not found and any(stage.tokens.values()):
        prompt, completion = (or_missing(stage.tokens.get(name)) for name in ("prompt", "completion"))
        rows = [row("Models on this machine", MISSING, prompt, completion, MISSING, notes=["no API was paid"])]
    for spent in found:
        judges = spent.role == "teacher" and len(found) < len(stage.spent)
        notes = ["also as judge, where one was needed"] * judges
        rows.append(row(in_words(spent.role), *bill_cells(spent), notes=notes))
    footnotes = tuple(bill_notes(found))
    return Table("Model", columns(*HEADS), tuple(rows), note=" ({})", footnotes=footnotes) if rows else None


def spent_words(stage: Synthesis, facts: Facts) -> str:
    """Requests, tokens and cost of all models in a sentence."""
    found = models_of(stage, facts.config)
    if not found:
        tokens = sum(stage.tokens.values())
        return f"It took {tokens:,} tokens of models on this machine." if tokens else "No model was asked."
    return bills_words(found)


def cost_words(found: Sequence[Spent]) -> str:
    return or_missing(total(found, "cost"), ",.6g")


# --- the whole run ----------------------------------------------------------------------------------------------


def synthesis_lede(facts: Facts) -> str:
    """What the synthesis stages did, in a sentence or two each."""
    return " ".join(
        f"{title(stage, facts.synthesis)}: {outcome(stage)} {spent_words(stage, facts)}" for stage in facts.synthesis
    )


def end_lines(directory: Path) -> list[str]:
    """The last lines of a run on the terminal: what the synthesis stages made, the cost, and where the rows are.

    A pipeline has the lines of each of its jobs. There are none for runs without such stages.
    """
    summary, config = json_object(directory / "summary.json"), json_object(directory / "config.resolved.json")
    lines: list[str] = []
    copies = False
    for number, (name, value) in enumerate(as_dict(summary.get("stages")).items(), start=1):
        folder = directory / "stages" / f"{number}-{name}"
        metrics = as_dict(as_dict(value).get("metrics"))
        if not is_synthesis(metrics):
            lines += end_lines(folder)
            continue
        stage = read_synthesis(name, metrics, {}, None)
        models = models_of(stage, config)
        cost = f"; cost {cost_words(models)}" if models else ""
        rejected = f", {stage.lost:,} rejected ({main_reasons(stage)})" if stage.lost else ""
        made = f"{or_missing(stage.entered)} candidates, {or_missing(stage.accepted)} accepted{rejected}{cost}"
        taken = as_int(metrics.get("written"))
        lines.append(f"{stage.operator}: {made}" + ("" if taken is None else f"; {taken:,} written"))
        lines += _short_of(stage.accepted, as_int(metrics.get("wanted")), as_int(metrics.get("budget")))
        if dataset := as_text(metrics.get("folder")):
            lines.append(f"dataset: {folder / dataset}")
            continue
        lines.append(f"rows:    {folder / LABELED_JSON}")
        lines += [f"card:    {folder / CARD}"] if (folder / CARD).is_file() else []
        copies = True
    copy = as_text(dig(config, "dataset.labeled_path")) or as_text(dig(config, "mix.labeled_path"))
    if copies and copy:
        lines.append(f"copy:    {copy}")
    return lines


def _short_of(accepted: int | None, wanted: int | None, budget: int | None) -> list[str]:
    """That a budget of candidates was used up before all wanted rows were accepted."""
    if accepted is None or wanted is None or budget is None or accepted >= wanted:
        return []
    return [
        f"  {wanted:,} rows were wanted, and the budget of {budget:,} candidates is used up",
        "    → see why they were rejected; then other seeds, a higher temperature, or a larger synthesis.budget",
    ]
