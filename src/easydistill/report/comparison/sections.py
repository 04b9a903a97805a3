"""The sections of a comparison, as blocks of a report."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from easydistill.report import charts
from easydistill.report import document as doc
from easydistill.report.comparison import tables
from easydistill.report.comparison.curves import overlaid, run_class
from easydistill.report.comparison.runs import Compared
from easydistill.report.metrics import figure_of, ordered_metrics
from easydistill.report.samples import Turn
from easydistill.report.words import loss_unit

ANSWERS_AT_FIRST = 12
SETTINGS_AT_FIRST = 40
ANSWERS_IN_MARKDOWN = 6
MOST_ANSWERS = 100
Runs = Sequence[Compared]


@dataclass(frozen=True)
class Side:
    """What one model answered."""

    who: str
    kind: str
    """CSS classes."""
    text: str | None
    score: str = ""


@dataclass(frozen=True)
class Question:
    """A held-out prompt, answered by the teacher and every run's student."""

    id: str
    prompt: tuple[Turn, ...]
    sides: tuple[Side, ...]
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sides(doc.Block):
    """Prompts, each with its answers side by side."""

    items: tuple[Question, ...]


def sections(runs: Runs, target: Path) -> list[doc.Section]:
    """Args:
    target: the page's path, from which images are linked.
    """
    return [
        *_runs(runs),
        *_metrics(runs),
        *_tasks(runs),
        *_loss(runs),
        *_settings(runs),
        *_spending(runs),
        *_answers(runs, target),
        *_reports(runs),
    ]


def names(runs: Runs) -> doc.Key:
    """The colours of the runs."""
    return doc.Key(tuple((f"k-run {run_class(number)}", run.name) for number, run in enumerate(runs)))


def warnings(runs: Runs) -> list[str]:
    """What a reader must know before the figures are compared."""
    found = [
        f"{run.name} is {run.state}: its figures are those of the stages that are complete."
        for run in runs
        if run.state not in ("done", "unknown")
    ]
    found += [f"{run.name} is damaged: {', '.join(run.damage())}." for run in runs if run.damage()]
    jobs = list(dict.fromkeys(run.facts.summary.job_type for run in runs if run.facts.summary.job_type))
    if len(jobs) > 1:
        found.append(f"The runs are of different jobs ({', '.join(jobs)}): not every figure has a counterpart.")
    if len({ids for run in runs if (ids := _heldout(run))}) > 1:
        found.append("They held out different rows, so no metric says by itself which student is better.")
    return found


def _heldout(run: Compared) -> frozenset[str]:
    """The rows that a run was measured on, as far as it has answers to them."""
    return frozenset(answer.id for answer in run.answers)


def verdict(runs: Runs) -> str:
    """Which run is the best by each known metric."""
    parts: dict[str, list[str]] = {}
    rows = [{found.name: found for found in run.facts.metrics} for run in runs]
    for name in dict.fromkeys(m.name for m in ordered_metrics(tuple(m for each in rows for m in each.values()))):
        figure = figure_of(name)
        pairs = [each[name].pair if name in each else None for each in rows]
        values = [pair[1] if pair is not None else None for pair in pairs]
        marked = tables.best(values, figure.better)
        if figure.short and len(marked) == 1:
            (at,) = marked
            others = ", ".join(figure.text(v) for n, v in enumerate(values) if n != at and v is not None)
            parts.setdefault(runs[at].name, []).append(f"{figure.short} ({figure.text(values[at])}, not {others})")
    return " ".join(f"{name} is ahead in {_listed(won)}." for name, won in parts.items())


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _runs(runs: Runs) -> Iterator[doc.Section]:
    yield doc.Section("runs", "The runs", "Runs", (names(runs), tables.overview(runs)))


def _metrics(runs: Runs) -> Iterator[doc.Section]:
    if any(run.facts.metrics for run in runs):
        blocks = [doc.Text(_measured_on(runs)), tables.metrics_table(runs)]
        yield doc.Section("results", "What the students learned", "Results", tuple(blocks), "hero")


def _measured_on(runs: Runs) -> str:
    """Whether the figures can be compared."""
    known = [ids for run in runs if (ids := _heldout(run))]
    words = ["Measured on held-out rows, after training; small: before it."]
    if len(set(known)) > 1:
        shared = len(frozenset.intersection(*known))
        words.append(f"The runs held out different rows ({shared:,} in common): compare their figures with care.")
    elif len(known) > 1:
        whose = "All runs" if len(known) == len(runs) else "Those that have answers"
        words.append(f"{whose} held out the same {len(known[0]):,} rows.")
    else:
        words.append("Which rows each run held out is not known.")
    if len({tables.teacher_of(run) for run in runs if run.facts.metrics}) > 1:
        words.append("Their teachers differ, and with them what the figures compare to.")
    return " ".join(words)


def _tasks(runs: Runs) -> Iterator[doc.Section]:
    table = tables.task_table(runs)
    if table is not None:
        words = doc.Text("Mean scores of evaluation tasks, with their confidence intervals.")
        yield doc.Section("tasks", "Tasks", "Tasks", (words, table))


def _loss(runs: Runs) -> Iterator[doc.Section]:
    curves = [(at, run.name, run.curve) for at, run in enumerate(runs) if len(run.curve.points) > 1]
    if not curves:
        return
    units = {loss_unit(runs[at].main) for at, _, _ in curves}
    kinds = {str(runs[at].main.setting("distillation.distillation_type")) for at, _, _ in curves}
    words = f"{units.pop().capitalize() if len(units) == 1 else 'The loss'}, by optimiser step."
    if len(kinds) > 1 or len(units) > 1:
        words += " The runs minimise different losses: compare the shape of the curves, not their height."
    ends = (f"{name}: {c.points[0].loss:.4f} at step {c.points[0].step:,}, {c.points[-1].loss:.4f} at step "
            f"{c.points[-1].step:,}" for _, name, c in curves)  # fmt: skip
    missing = [run.name for run in runs if len(run.curve.points) < 2]
    blocks: list[doc.Block] = [
        doc.Text(words),
        doc.Charts(tuple(overlaid(curves, frame) for frame in (charts.WIDE, charts.NARROW))),
        doc.Key(tuple((f"k-run {run_class(at)}", name) for at, name, _ in curves)),
        doc.Text("; ".join(ends) + ".", only="md"),
    ]
    if missing:
        blocks.append(doc.Text(f"Fewer than two logged losses: {', '.join(missing)}.", "soft"))
    yield doc.Section("loss", "Training loss", "Loss", tuple(blocks))


def _settings(runs: Runs) -> Iterator[doc.Section]:
    differing, machine = tables.settings_table(runs), tables.environment_table(runs)
    words = "Only what differs, defaults included." if differing.rows else "Every setting is the same."
    shown = replace(differing, rows=differing.rows[:SETTINGS_AT_FIRST])
    blocks: list[doc.Block] = [doc.Text(words), *([shown] if shown.rows else [])]
    if rest := differing.rows[SETTINGS_AT_FIRST:]:
        blocks.append(doc.Fold(f"{len(rest):,} more", (replace(differing, rows=rest),)))
    without = [run.name for run in runs if not run.settings]
    if without:
        blocks.append(doc.Text(f"No config was kept of {', '.join(without)}.", "soft"))
    if machine.rows:
        blocks.append(doc.Fold("Machine and packages that differ", (machine,)))
    yield doc.Section("settings", "Settings that differ", "Settings", tuple(blocks))


def _spending(runs: Runs) -> Iterator[doc.Section]:
    if any(run.facts.stages or run.jobs for run in runs):
        words = doc.Text(
            "Wall time of complete stages over all attempts, with the tokens of answers where any were counted."
        )
        yield doc.Section("time", "Time, tokens, cost", "Time and cost", (words, tables.spending_table(runs)))


def _answers(runs: Runs, target: Path) -> Iterator[doc.Section]:
    """Held-out prompts that at least two runs have, those that they answered differently first."""
    by_run = [{answer.id: answer for answer in run.answers} for run in runs]
    ids = [name for name in dict.fromkeys(i for each in by_run for i in each) if sum(name in e for e in by_run) > 1]
    if not ids:
        return
    ids.sort(key=lambda name: len({each[name].after for each in by_run if name in each}) == 1)
    items = tuple(_question(name, runs, target) for name in ids[:MOST_ANSWERS])
    rest = items[ANSWERS_AT_FIRST:]
    words = (
        "Held-out prompts, answered by the teacher and by each student after training; those that differ come first."
    )
    blocks: list[doc.Block] = [doc.Text(words), Sides(items[:ANSWERS_AT_FIRST], only="html")]
    if rest:
        blocks.append(doc.Fold(f"{len(rest):,} more", (Sides(rest),), only="html"))
    blocks.append(Sides(items[:ANSWERS_IN_MARKDOWN], only="md"))
    if len(ids) > MOST_ANSWERS:
        blocks.append(doc.Text(f"{len(ids) - MOST_ANSWERS:,} more prompts are in each run's answers.jsonl.", "soft"))
    yield doc.Section("answers", "Answers side by side", "Answers", tuple(blocks), "answers")


def _question(name: str, runs: Runs, target: Path) -> Question:
    found = {at: answer for at, run in enumerate(runs) for answer in run.answers if answer.id == name}
    first = next(iter(found.values()))
    teachers = list(dict.fromkeys(answer.teacher for answer in found.values() if answer.teacher is not None))
    sides = [Side("Teacher" if len(teachers) < 2 else f"Teacher, {n + 1}", "", text) for n, text in enumerate(teachers)]
    for at, run in enumerate(runs):
        answer = found.get(at)
        score = "" if answer is None or answer.rouge_l_after is None else f"ROUGE-L {answer.rouge_l_after:.2f}"
        sides.append(Side(run.name, run_class(at), None if answer is None else answer.after, score))
    at = next(iter(found))
    folder = runs[at].facts.directory
    images = tuple(os.path.relpath(folder / path, target.resolve().parent) for path in first.images)
    return Question(name, first.prompt, tuple(sides), images)


def _reports(runs: Runs) -> Iterator[doc.Section]:
    lines = "\n".join(str(run.facts.directory / "report.html") for run in runs)
    words = doc.Text("Each run's own report says more:", "")
    yield doc.Section("reports", "The runs' own reports", "Reports", (words, doc.Code(lines, "text", "snippet")))
