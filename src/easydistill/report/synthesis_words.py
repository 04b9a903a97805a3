"""A synthesis stage as a person says it: sentences, the lines of its tables, and the end of a run on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.asking.outputs import LABELED_JSON
from easydistill.data.files import read_json
from easydistill.report.charts import meter
from easydistill.report.collect import Facts
from easydistill.report.synthesis import Check, Spent, Synthesis, is_synthesis, read_synthesis
from easydistill.report.values import as_dict, as_float, as_int, as_text, dig
from easydistill.report.words import (
    MISSING,
    count,
    plural,
    short_model,
    student_words,
    teacher_was_asked,
    teacher_words,
)
from easydistill.synthesis.stage import CARD

REASONS_TOLD = 3
_UNITS = {"1": "words", "2": "word pairs", "3": "runs of three words"}


@dataclass(frozen=True)
class FunnelLine:
    """Rows at one point of the funnel."""

    name: str
    left: int
    lost: str
    bar: str


@dataclass(frozen=True)
class DiversityLine:
    """A figure, which way is better, and how to read it."""

    label: str
    value: str
    better: str
    reading: str
    bar: str = ""


@dataclass(frozen=True)
class SpendingLine:
    """What the answers of one model took."""

    who: str
    hint: str
    requests: str
    prompt: str
    completion: str
    cost: str


def in_words(name: str) -> str:
    """A name of the program's as words: `near_duplicate` → `Near duplicate`."""
    text = name.replace("_", " ").strip()
    return text[:1].upper() + text[1:] if text else name


def title(stage: Synthesis, among: Sequence[Synthesis] = ()) -> str:
    """A stage's heading; where an operator ran twice, with the stage's name."""
    twice = sum(other.operator == stage.operator for other in among) > 1
    return f"{in_words(stage.operator)} ({stage.stage})" if twice else in_words(stage.operator)


# --- rows -------------------------------------------------------------------------------------------------------


def funnel_lines(stage: Synthesis) -> list[FunnelLine]:
    """Candidates, what each check left, and what was accepted."""
    entered, accepted = stage.entered, stage.accepted
    if not entered or accepted is None:
        return []
    return [
        FunnelLine("Candidates", entered, "", meter((1.0, "kept"))),
        *(
            FunnelLine(
                in_words(check.reason),
                check.left,
                f"{check.lost:,} lost, {share(check.lost, check.entered)} of those that came so far",
                meter((check.left / entered, "kept"), (check.lost / entered, "lost")),
            )
            for check in stage.checks
        ),
        FunnelLine("Accepted", accepted, "", meter((accepted / entered, "after"))),
    ]


def share(part: int, whole: int) -> str:
    """A part in per cent; one that is neither nothing nor everything is not rounded to either."""
    if not whole:
        return MISSING
    text = f"{part / whole:.1%}"
    if part and text == "0.0%":
        return "under 0.1%"
    return "over 99.9%" if part < whole and text == "100.0%" else text


def outcome(stage: Synthesis) -> str:
    """How many candidates became rows, and what most of the others were refused for."""
    if stage.entered is None or stage.accepted is None or stage.lost is None:
        return ""
    passed = f"{stage.accepted:,} of {plural(stage.entered, 'candidate')} {'was' if stage.accepted == 1 else 'were'}"
    part = share(stage.accepted, stage.entered)
    if not stage.lost:
        return f"{passed} accepted ({part}); none was rejected."
    return f"{passed} accepted ({part}), {stage.lost:,} rejected: {main_reasons(stage)}."


def main_reasons(stage: Synthesis) -> str:
    """The reasons that cost most rows, with how many."""
    by_loss: list[Check] = [check for check, _ in stage.rejected]
    told = [f"{in_words(check.reason).lower()} {check.lost:,}" for check in by_loss[:REASONS_TOLD]]
    others = sum(check.lost for check in by_loss[REASONS_TOLD:])
    return ", ".join([*told, *([f"other reasons {others:,}"] if others else [])])


# --- how varied -------------------------------------------------------------------------------------------------


def diversity_lines(stage: Synthesis) -> list[DiversityLine]:
    """Figures of the accepted rows' prompts; none where nothing was measured."""
    found = stage.diversity
    if not found:
        return []
    sampled = as_int(found.get("sampled"))
    of_sample = "" if sampled is None else f", over {plural(sampled, 'row')}"
    return [
        *_distinct(as_dict(found.get("distinct"))),
        _share_line(
            "Overlap between rows (self-BLEU)",
            as_float(found.get("self_bleu")),
            "lower",
            f"Mean BLEU-4 of a prompt against all the others{of_sample}: 1 where the rows are copies of each other.",
            "it takes two prompts",
        ),
        _seed_line(as_dict(found.get("seed_similarity")), sampled, of_sample),
        _length_line(as_dict(found.get("lengths"))),
        _language_line(as_dict(found.get("languages"))),
    ]


def _distinct(found: dict[str, Any]) -> Iterator[DiversityLine]:
    for order, value in found.items():
        units = _UNITS.get(order, f"runs of {order} words")
        number = as_float(value)
        reading = "" if number is None else f"Of 100 {units}, {100 * number:.0f} are different ones."
        yield _share_line(
            f"Different {units} (distinct-{order})", number, "higher", reading, "the prompts are too short"
        )


def _seed_line(found: dict[str, Any], sampled: int | None, of_sample: str) -> DiversityLine:
    middle = as_float(found.get("p50"))
    reading = f"ROUGE-L to the likest seed, the median{of_sample}: 1 copies a seed, 0 has nothing in common with any."
    highest, upper = as_float(found.get("p100")), as_float(found.get("p95"))
    if upper is not None and highest is not None:
        tail = f"; one row in twenty is above {upper:.2f}" if sampled is not None and sampled >= 20 else ""
        reading += f" The likest row has {highest:.2f}{tail}."
    why = "measured only where an operator writes new prompts"
    return _share_line("Similarity to the nearest seed", middle, "lower", reading, why)


def _share_line(label: str, value: float | None, better: str, reading: str, why_missing: str) -> DiversityLine:
    if value is None:
        return DiversityLine(label, MISSING, better, f"{MISSING}: {why_missing}.")
    return DiversityLine(label, f"{value:.3f}", better, reading, meter((value, "after")))


def _length_line(found: dict[str, Any]) -> DiversityLine:
    label = "Length of prompts, in words"
    low, middle, high, longest = (as_float(found.get(name)) for name in ("p5", "p50", "p95", "p100"))
    if low is None or middle is None or high is None or longest is None:
        return DiversityLine(label, MISSING, "", f"{MISSING}: nothing was measured.")
    reading = f"The median; nine in ten lie between {low:.0f} and {high:.0f}, the longest has {longest:,.0f}."
    return DiversityLine(label, f"{middle:,.0f}", "", reading)


def _language_line(found: dict[str, Any]) -> DiversityLine:
    rows = {name: as_int(number) or 0 for name, number in found.items()}
    return DiversityLine(
        "Prompts in Chinese", count(rows.get("zh", 0)), "", f"Of {plural(sum(rows.values()), 'prompt')}."
    )


# --- what it took -----------------------------------------------------------------------------------------------


def models_of(stage: Synthesis, facts: Facts) -> list[tuple[Spent, str]]:
    """Spending by role and a hint beside it. A judge that is the teacher is one model with one bill."""
    roles = list(stage.spent)
    teacher, judge = (next((spent for spent in roles if spent.role == name), None) for name in ("teacher", "judge"))
    if judge is None or teacher is None or facts.setting("judge") is not None:
        return [(spent, "") for spent in roles]
    return [
        (spent, "and judge, wherever one was needed" if spent is teacher else "")
        for spent in roles
        if spent is not judge
    ]


def spending_lines(stage: Synthesis, facts: Facts) -> list[SpendingLine]:
    """One line a model that was asked; none where none was."""
    found = models_of(stage, facts)
    if not found and any(stage.tokens.values()):
        prompt, completion = (count(stage.tokens.get(name)) for name in ("prompt", "completion"))
        return [SpendingLine("Models on this machine", "nothing was bought", MISSING, prompt, completion, MISSING)]
    return [
        SpendingLine(
            in_words(spent.role),
            hint,
            count(spent.answers),
            _tokens(spent.prompt, spent.cached, "cached"),
            _tokens(spent.completion, spent.reasoning, "reasoning"),
            MISSING if spent.cost is None else f"{spent.cost:,.6g}",
        )
        for spent, hint in found
    ]


def _tokens(number: int | None, part: int | None, name: str) -> str:
    return f"{count(number)} ({part:,} {name})" if number is not None and part else count(number)


def spending_notes(stage: Synthesis, facts: Facts) -> list[str]:
    """What must be said for the figures to be read rightly: why one is missing, above all."""
    found = [spent for spent, _ in models_of(stage, facts)]
    uncounted = sum(spent.uncounted for spent in found)
    notes = []
    if uncounted:
        notes.append(f"For {plural(uncounted, 'answer')} the server told no tokens: they are not in the counts.")
    if any(spent.cost is None and not spent.uncounted for spent in found):
        notes.append("The cost is n/a because the config gives no prices (inference.prices).")
    elif found and uncounted:
        notes.append("So the cost is n/a too.")
    elif found:
        notes.append("The cost is in the currency of the config's prices.")
    return notes


def spent_words(stage: Synthesis, facts: Facts) -> str:
    """Requests, tokens and cost of all models in a sentence."""
    found = [spent for spent, _ in models_of(stage, facts)]
    if not found:
        tokens = sum(stage.tokens.values())
        return f"It took {tokens:,} tokens of models on this machine." if tokens else "No model was asked."
    answers = _sum([spent.answers for spent in found])
    prompt, completion = _sum([spent.prompt for spent in found]), _sum([spent.completion for spent in found])
    requests = MISSING if answers is None else plural(answers, "request")
    return f"It took {requests}, {count(prompt)} tokens in and {count(completion)} out; cost {cost_words(found)}."


def cost_words(found: Sequence[Spent]) -> str:
    costs = [spent.cost for spent in found if spent.cost is not None]
    return MISSING if len(costs) < len(found) else f"{sum(costs):,.6g}"


def _sum(numbers: Sequence[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


# --- the whole run ----------------------------------------------------------------------------------------------


def synthesis_lede(facts: Facts) -> str:
    """What the synthesis stages did, in a sentence or two each."""
    return " ".join(
        f"{title(stage, facts.synthesis)}: {outcome(stage)} {spent_words(stage, facts)}" for stage in facts.synthesis
    )


@dataclass(frozen=True)
class Station:
    """A box of the head's flow from left to right."""

    kind: str
    """CSS class: `source`, `teacher`, `made`."""
    name: str
    value: str
    more: str


def stations(facts: Facts) -> list[Station]:
    """Where the rows came from, who was asked, and what came out of it."""
    source, copy = (as_text(facts.setting(f"dataset.{name}")) for name in ("instruction_path", "labeled_path"))
    place = source if source != short_model(source) else ""
    found = [Station("source", "Rows in", short_model(source) or MISSING, place if source else "no config was kept")]
    last = next((stage for stage in reversed(facts.stages) if stage.left is not None), None)
    roles = {spent.role for stage in facts.synthesis for spent in stage.spent}
    if teacher_was_asked(facts) and (not roles or "teacher" in roles):
        found.append(Station("teacher", "Teacher", *teacher_words(facts)))
    served = as_text(facts.setting("student_inference.base_url"))
    if served:
        name = as_text(facts.setting("student_inference.model"))
        found.append(Station("teacher", "Student", name or "the API's default model", served))
    elif facts.setting("models.student") is not None:
        found.append(Station("teacher", "Student", *student_words(facts)))
    if facts.setting("judge") is not None:
        name = as_text(facts.setting("judge.inference.model")) or short_model(as_text(facts.setting("models.judge")))
        found.append(Station("teacher", "Judge", name or MISSING, as_text(facts.setting("judge.inference.base_url"))))
    if last is None or last.left is None:
        found.append(Station("made", "Rows out", MISSING, "no stage is complete"))
    else:
        place = copy or f"{LABELED_JSON} of stage {last.name}"
        found.append(Station("made", "Rows out", plural(last.left, "row"), place))
    return found


def end_lines(directory: Path) -> list[str]:
    """The end of a run with synthesis stages, for the terminal: what was made, what it cost, where it is.

    A pipeline's jobs each have their own lines. Nothing for runs without such stages.
    """
    summary, config = _object(directory / "summary.json"), _object(directory / "config.resolved.json")
    lines: list[str] = []
    copies = False
    for number, (name, value) in enumerate(as_dict(summary.get("stages")).items(), start=1):
        folder = directory / "stages" / f"{number}-{name}"
        metrics = as_dict(as_dict(value).get("metrics"))
        if not is_synthesis(metrics):
            lines += end_lines(folder)
            continue
        stage = read_synthesis(name, metrics, {}, None)
        # A judge without a config of its own is the teacher.
        models = [spent for spent in stage.spent if spent.role != "judge" or dig(config, "judge") is not None]
        cost = f"; cost {cost_words(models)}" if models else ""
        rejected = f", {stage.lost:,} rejected ({main_reasons(stage)})" if stage.lost else ""
        made = f"{count(stage.entered)} candidates, {count(stage.accepted)} accepted{rejected}{cost}"
        lines += [f"{stage.operator}: {made}", f"rows:    {folder / LABELED_JSON}", f"card:    {folder / CARD}"]
        copies = True
    copy = as_text(dig(config, "dataset.labeled_path"))
    if copies and copy:
        lines.append(f"copy:    {copy}")
    return lines


def _object(path: Path) -> dict[str, Any]:
    try:
        return as_dict(read_json(path))
    except (OSError, ValueError):
        return {}
