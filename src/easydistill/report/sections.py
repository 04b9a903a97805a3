"""The report's sections, from the facts of a run. A section without data is left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from easydistill.data.numbers import as_float
from easydistill.report import charts, tables
from easydistill.report import disagreement as compared
from easydistill.report import document as doc
from easydistill.report import synthesis_words as synthesis
from easydistill.report.collect import Answers, Facts, Summary
from easydistill.report.costs import cost_sections
from easydistill.report.draft import draft_sections
from easydistill.report.exploration import Courses, read_exploration
from easydistill.report.exported import export_sections
from easydistill.report.fact_tables import fact_tables, simple_facts
from easydistill.report.figures import plain
from easydistill.report.metrics import metrics_table, verdict
from easydistill.report.not_shown import not_shown
from easydistill.report.phases import read_spent
from easydistill.report.pipeline import pipeline_sections, rejected_words
from easydistill.report.settings import settings
from easydistill.report.snippet import snippet
from easydistill.report.synthesis import Check, Synthesis
from easydistill.report.task_scores import task_sections
from easydistill.report.values import as_dict
from easydistill.report.words import Station, lede, loss_unit

ANSWERS_AT_FIRST = 24
ANSWERS_IN_MARKDOWN = 8
DIFFERENCES_AT_FIRST = 6
DIFFERENCES_IN_MARKDOWN = 12
COSTLY_AT_FIRST = 10
OWN_ANSWERS = ("The student's own answers over training", "Own answers")
_ALL_REJECTED = doc.Text("Every rejected row is in the stage's rejected.jsonl.")
T = TypeVar("T")
_SIDES = (("k-before", "before training"), ("k-after", "after training"))


@dataclass(frozen=True)
class Report:
    """The sections, and what is shown above them."""

    summary: Summary
    time: str
    when: str
    flow: tuple[Station, ...]
    lede: str
    banner: tuple[str, str, str] | None
    """(CSS class, headline, text)."""
    sections: tuple[doc.Section, ...]


def sections(facts: Facts) -> list[doc.Section]:
    return [
        *_results(facts),
        *pipeline_sections(facts),
        *task_sections(facts),
        *draft_sections(facts),
        *export_sections(facts),
        *_loss(facts),
        *_exploration(facts),
        *_rows(facts),
        *_notices(facts),
        *not_shown(facts),
        *(_synthesis(facts, number) for number in range(len(facts.synthesis))),
        *_pictured(facts),
        *_left_to_learn(facts),
        *_answers(facts),
        *cost_sections(facts),
        *_time(facts),
        *_rejected(facts),
        _settings(facts),
        *_next_steps(facts),
    ]


def _heading(text: str) -> doc.Text:
    return doc.Text(text, "heading")


def _folded(items: tuple[T, ...], at_first: int, block: Callable[[tuple[T, ...]], doc.Block]) -> list[doc.Block]:
    """A block of the first items, and in HTML one of the others that unfolds."""
    rest = items[at_first:]
    folded = [doc.Fold(f"{len(rest):,} more", (block(rest),), only="html")] if rest else []
    return [block(items[:at_first]), *folded]


def _results(facts: Facts) -> Iterator[doc.Section]:
    if facts.metrics:
        intro = doc.Text(verdict(facts) or "Measured on held-out prompts.")
        yield doc.Section(
            "results", "What the student learned", "Results", (intro, metrics_table(facts), doc.Key(_SIDES)), "hero"
        )


def _loss(facts: Facts) -> Iterator[doc.Section]:
    points = facts.curve.points
    if not points:
        return
    unit, first, last = loss_unit(facts), points[0], points[-1]
    smoothed = len(points) >= charts.SMOOTH_FROM
    key = [("", "smoothed"), ("k-raw", "as logged")] if smoothed else [("", "as logged")]
    if any(point.rate for point in points):
        key.append(("k-rate", "learning rate (right axis)"))
    ends = f"{first.loss:.4f} at step {first.step:,}, {last.loss:.4f} at step {last.step:,} ({unit})."
    drawn = tuple(charts.loss_curve(points, frame) for frame in (charts.WIDE, charts.NARROW)) if len(points) > 1 else ()
    blocks = (
        doc.Text(f"{unit.capitalize()}, by optimiser step.", only="html"),
        doc.Charts(drawn, "data-figure data-smoothed" if smoothed else "data-figure"),
        doc.Key(tuple(key)),
        doc.Text(ends, only="md"),
        *(doc.Text(note, "soft") for note in curve_notes(facts)),
    )
    yield doc.Section("loss", "Training loss", "Loss", blocks, only="" if drawn else "md")


def curve_notes(facts: Facts) -> list[str]:
    """Notes that the reader of the loss curve needs."""
    curve = facts.curve
    notes = []
    if curve.per_point > 1:
        notes.append(f"Each point is the mean of {curve.per_point} of {curve.logged:,} logged steps.")
    if curve.not_finite:
        lost = "loss was not a finite number and is" if curve.not_finite == 1 else "losses were not finite and are"
        notes.append(f"{curve.not_finite:,} logged {lost} left out.")
    if curve.points and facts.stage("train") is None:
        notes.append("Training is not complete: these are the losses logged so far by attempts in this directory.")
    return notes


def _exploration(facts: Facts) -> Iterator[doc.Section]:
    found = read_exploration(facts.directory / "metrics.jsonl", facts.train)
    if found is not None:
        alarms = (doc.Text(message, "alarm", f"Step {step:,}:") for step, message in found.alarms)
        title, short = ("Rewards over training", "Rewards") if found.rewarded else OWN_ANSWERS
        fit = (doc.Text(found.fit, "soft"),) if found.fit else ()
        yield doc.Section("exploration", title, short, (*alarms, *fit, Courses(found.courses), found.table))


def _rows(facts: Facts) -> Iterator[doc.Section]:
    # Synthesis stages have funnels of their own.
    steps = tables.funnel(facts) if len(facts.synthesis) < len(facts.stages) else []
    if steps:
        words = doc.Text(f"{rejected_words(facts)} {tables.truncated_words(facts)}".strip())
        funnel = doc.Funnel(tuple(steps), ("Step", "Rows", "Rejected on the way"))
        yield doc.Section("rows", "Where the rows went", "Rows", (words, funnel))


def _notices(facts: Facts) -> Iterator[doc.Section]:
    texts = dict.fromkeys(notice for stage in facts.stages for notice in stage.notices)
    if texts:
        intro = doc.Text("What the data says and the run did not use.")
        blocks = (intro, *(doc.Text(text, "alarm", "Note:") for text in texts))
        yield doc.Section("notices", "Not read", "Not read", blocks)


def _synthesis(facts: Facts, number: int) -> doc.Section:
    stage = facts.synthesis[number]
    steps, diversity = tuple(synthesis.funnel_steps(stage)), synthesis.diversity_table(stage)
    allowed = as_float(facts.setting("dataset.max_rejected_share"))
    intro = [
        # If the head is about other stages, the section itself says what this one did.
        f"{synthesis.outcome(stage)} {synthesis.spent_words(stage, facts)}" if lede(facts) else "",
        "The candidates left after each check, in the order of the checks."
        if steps
        else "What became of the candidates was not recorded.",
        "" if allowed is None or allowed >= 1 else f"Up to {allowed:.0%} may be rejected.",
    ]
    blocks: list[doc.Block] = [doc.Text(" ".join(part for part in intro if part))]
    if steps:
        blocks.append(doc.Funnel(steps, ("Check", "Rows left", "Lost")))
    if diversity is not None:
        aside = "The share of distinct words falls as a set grows, so compare only sets of equal size."
        blocks += [
            _heading("How varied the rows are"),
            doc.Text(f"Measured on the prompts of the accepted rows. {aside}"),
        ]
        blocks.append(diversity)
    blocks += [
        _heading("Cost"),
        synthesis.spending_table(stage, facts) or doc.Text(synthesis.spent_words(stage, facts), "soft"),
    ]
    reported = [*([doc.Pairs(tuple(simple_facts(stage)))] if simple_facts(stage) else []), *fact_tables(stage)]
    if reported:
        blocks += [_heading("Reported by the operator"), *reported]
    blocks += _samples(stage)
    heading = synthesis.title(stage, facts.synthesis)
    return doc.Section(f"synthesis-{number + 1}", heading, heading, tuple(blocks), "synthesis")


def _samples(stage: Synthesis) -> Iterator[doc.Block]:
    if stage.kept:
        of_all = f"{len(stage.kept)} of {stage.accepted or 0:,}, drawn by the hash of their ids."
        yield from (_heading("Rows that were kept"), doc.Text(of_all, only="html"), *stage.kept)
    if stage.rejected:
        yield from (_heading("Rows that were rejected"), _ALL_REJECTED)
    for at, (check, rows) in enumerate(stage.rejected):
        yield _rejected_samples(check, rows, is_open=at == 0)


def _rejected_samples(check: Check, rows: tuple[doc.Sample, ...], *, is_open: bool) -> doc.Fold:
    shown = f", {'all' if len(rows) == check.lost else f'{len(rows)} of them'} here" if rows else ""
    none = doc.Text("n/a: no such row is in rejected.jsonl.", "soft", only="html")
    return doc.Fold(f"{check.reason}: {check.lost:,} rejected{shown}", rows or (none,), is_open)


def _pictured(facts: Facts) -> Iterator[doc.Section]:
    """Rows with images, as the teacher saw and answered them."""
    if facts.pictured:
        words = doc.Text(
            "Drawn by the hash of their ids. Thumbnails lie in report_images/, the images themselves in images/.",
            "soft",
        )
        yield doc.Section("images", "Rows with images", "Images", (words, *facts.pictured))


def _left_to_learn(facts: Facts) -> Iterator[doc.Section]:
    """Teacher and student compared token by token."""
    found = facts.disagreement
    if found is None or found.latest is None:
        return
    side, positions, shares = found.latest, compared.position_lines(found), compared.shares_table(found)
    blocks: list[doc.Block] = [doc.Text(_compared_words(side))]
    if shares.rows:
        blocks += [shares, doc.Key((*_SIDES, ("k-teacher", "what a student equal to its teacher would have")))]
    if positions:
        drawn = tuple(
            charts.position_chart(positions, frame) for frame in (charts.POSITIONS_WIDE, charts.POSITIONS_NARROW)
        )
        lines = doc.Key(tuple((kind.replace("k-", "k-by-"), text) for kind, text in _SIDES))
        blocks += [_heading("Along the answer"), doc.Charts(drawn), lines, compared.positions_table(positions)]
    if side.largest:
        when = "after" if found.after is not None else "before"
        words = "The marked token is the one in the answer, next to the tokens that each model found likeliest."
        blocks += [_heading("The largest disagreements"), doc.Text(words, "soft")]
        blocks += _folded(
            side.largest, DIFFERENCES_AT_FIRST, lambda part: compared.Differences(part, when, only="html")
        )
        blocks.append(compared.Differences(side.largest[:DIFFERENCES_IN_MARKDOWN], when, only="md"))
    if side.costly:
        most = max(item.kl * item.count for item in side.costly) or 1.0
        words = "KL divergence summed over all occurrences of the token in the teacher's answers."
        blocks += [_heading("The tokens that cost most"), doc.Text(words, "soft")]
        blocks += _folded(side.costly, COSTLY_AT_FIRST, lambda part: compared.costly_table(part, most))
    yield doc.Section("left", "What is left to learn", "Left to learn", tuple(blocks), "left")


def _compared_words(side: compared.Side) -> str:
    where = "every token" if side.tokens is None else f"each of the {side.tokens:,} tokens"
    words = (
        f"Both models predicted the next token at {where} of the teacher's held-out answers. "
        "The KL divergence measures how far their probabilities differ; at 0 there is nothing left to learn."
    )
    left_out = f" {side.not_finite:,} tokens without a finite KL divergence are left out." if side.not_finite else ""
    return words + left_out


def _answers(facts: Facts) -> Iterator[doc.Section]:
    answers = facts.answers
    if not answers:
        return
    note = next((row.note for row in facts.metrics if row.name == "rouge_l"), "")
    missing = f"n/a: {note or 'no answer was recorded'}"
    intro, reference = (
        "Held-out prompts, answered by the teacher and by the student before and after training.",
        "Teacher",
    )
    if facts.by_rewards:
        intro = "Held-out prompts with the student's most probable answers before and after training."
        reference, missing = "Known answer", "n/a: the row has no known answer"
    blocks: list[doc.Block] = [
        doc.Text(intro),
        *_folded(answers, ANSWERS_AT_FIRST, lambda part: Answers(part, missing, reference, only="html")),
        Answers(answers[:ANSWERS_IN_MARKDOWN], missing, reference, only="md"),
    ]
    total = facts.answers_total
    shown: dict[doc.Only, int] = {"html": len(answers), "md": min(len(answers), ANSWERS_IN_MARKDOWN)}
    for only, number in shown.items():
        if total > number:
            rest = f"The remaining {total - number:,} of {total:,} are in answers.jsonl."
            blocks.append(doc.Text(rest, "soft", only=only))
    yield doc.Section("answers", "Side by side", "Answers", tuple(blocks), "answers")


def _time(facts: Facts) -> Iterator[doc.Section]:
    if facts.stages and not facts.is_pipeline:
        intro = doc.Text("Wall time of each stage, over all attempts.")
        blocks: list[doc.Block] = [intro, tables.stage_table(facts)]
        if remembered := tables.remembered_words(facts):
            blocks.append(doc.Text(remembered))
        if (spent := read_spent(facts.directory / "metrics.jsonl")) is not None:
            blocks += [doc.Text(spent.told), spent.table]
        yield doc.Section("time", "Time and tokens", "Time and tokens", tuple(blocks))


def _rejected(facts: Facts) -> Iterator[doc.Section]:
    if not facts.rejected:
        return
    blocks: list[doc.Block] = [_ALL_REJECTED, tables.rejected_table(facts)]
    for item in facts.rejected:
        shown = "all" if len(item.examples) == item.count else f"the first {len(item.examples)} of"
        if item.examples:
            blocks.append(
                doc.Fold(f"{item.reason} in {item.stage}: {shown} {item.count:,}", item.examples, only="html")
            )
    yield doc.Section("rejected", "Rejected rows", "Rejected rows", tuple(blocks))


def _settings(facts: Facts) -> doc.Section:
    blocks: list[doc.Block] = [doc.Pairs(tuple(settings(facts)))] if settings(facts) else []
    if facts.config:
        text = json.dumps(facts.config, indent=2, ensure_ascii=False)
        blocks.append(doc.Fold("The whole config, defaults included", (doc.Code(text, "json"),), only="html"))
    else:
        blocks.append(doc.Text("n/a: config.resolved.json is missing or cannot be read.", "soft"))
    names = {"python": "Python", "platform": "Platform", "cpus": "Processors"}
    known = {name: facts.environment.get(key) for key, name in names.items()}
    pairs = [(name, plain(value)) for name, value in known.items() if value is not None]
    pairs += [(name, plain(version)) for name, version in as_dict(facts.environment.get("packages")).items()]
    if pairs:
        blocks.append(doc.Fold("Environment", (doc.Pairs(tuple(pairs)),)))
    return doc.Section("settings", "Settings", "Settings", tuple(blocks))


def _next_steps(facts: Facts) -> Iterator[doc.Section]:
    blocks: list[doc.Block] = []
    if facts.has_student:
        older = (
            "The student in this directory is from an earlier run: training is not complete as configured now. It loads"
        )
        trained = facts.stage("train") is not None or facts.is_pipeline
        subject = "The student loads" if trained else older
        code = snippet(str(facts.directory / "student"), scores=facts.scores, sees=facts.sees)
        blocks += [doc.Text(f"{subject} with plain transformers:", ""), doc.Code(code, "python", "snippet")]
    if facts.summary.resume:
        again = "To run the job again (complete stages are skipped):"
        words = again if facts.summary.status == "done" else "To continue the run:"
        blocks += [doc.Text(words, ""), doc.Code(facts.summary.resume, "sh", "command")]
    if blocks:
        yield doc.Section("use", "Next steps", "Next steps", tuple(blocks))
