"""`student/README.md`: what the student is, how it was made, how well it does, how to load it, where it ends."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from easydistill.data.files import write_text
from easydistill.report import words
from easydistill.report.build import code, md, printable, snippet
from easydistill.report.collect import Facts, collect
from easydistill.report.settings_words import settings
from easydistill.report.values import as_dict, as_float, as_int, as_text

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def write_model_card(run_directory: Path) -> None:
    """Write the card beside the student; does nothing where there is no student.

    A student of an earlier config keeps its card: this run's figures are not its own.
    """
    folder = run_directory / "student"
    if not folder.is_dir():
        return
    facts = collect(run_directory)
    target = folder / "README.md"
    if facts.stage("train") is None and target.exists():
        return
    write_text(target, printable(card(facts)))


def base_model(facts: Facts) -> str | None:
    """The hub id of the model that the student was made from; None where it is none."""
    student = facts.setting("models.student")
    reference = as_text(student.get("from") if isinstance(student, dict) else student)
    if _HUB_ID.fullmatch(reference) is None or reference.endswith(".gguf") or Path(reference).exists():
        return None
    return reference


def card(facts: Facts) -> str:
    """The card's Markdown, with the front matter that model hubs read."""
    front: dict[str, Any] = {"library_name": "transformers"}
    base = base_model(facts)
    if base is not None:
        front["base_model"] = base
    scores = words.is_reward_model(facts)
    front |= (
        {"pipeline_tag": "text-classification", "tags": ["easydistill", "reward-model"]}
        if scores
        else {"pipeline_tag": "text-generation", "tags": ["easydistill", "distillation"]}
    )
    how_to_load = snippet("path/to/this/directory", scores=scores)
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {md(facts.summary.name)}",
        _how_it_was_made(facts),
        _figures(facts),
        _data(facts),
        f"## How to load it\n\nWith plain transformers:\n\n```python\n{how_to_load}```",
        _limits(facts),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _model(named: tuple[str, str]) -> str:
    """A model's name, and how it was made; not where it lies, for a card may be published."""
    name, more = named
    secret = "/" in more or "\\" in more or more == "as it is"
    return code(name) if secret or not more else f"{code(name)} ({md(more)})"


def _how_it_was_made(facts: Facts) -> str:
    job = f" (job type {code(facts.summary.job_type)})" if facts.summary.job_type else ""
    teacher, student = words.teacher_words(facts), words.student_words(facts)
    lines = [
        "## How it was made",
        "",
        f"{'A reward model, trained' if words.is_reward_model(facts) else 'Distilled'} with EasyDistill{job}.",
        "",
        f"- Teacher: {_model(teacher)}",
        f"- Student: {_model(student)}",
    ]
    keep = {"Asking the teacher", "Training", "Student's size", "Seeds"}
    lines += [f"- {name}: {md(text)}" for name, text in settings(facts) if name in keep]
    steps, loss = as_int(facts.train.get("steps")), as_float(facts.train.get("final_loss"))
    if steps is not None:
        end = "" if loss is None else f", training loss {loss:.3f} at the end"
        lines.append(f"- {steps:,} optimiser steps{end}")
    return "\n".join(lines)


def _figures(facts: Facts) -> str:
    if not facts.metrics:
        return "## Before and after training\n\nn/a: the student was not evaluated in this run."
    lines = ["## Before and after training", "", md(words.verdict(facts)), ""]
    lines += ["| Metric | Unit | Before | After | Change |", "|---|---|--:|--:|---|"]
    for row in map(words.metric_words, words.ordered_metrics(facts.metrics)):
        unit = ", ".join(part for part in (row.unit, row.better_when) if part)
        change = " ".join(part for part in (row.arrow, row.change, md(row.why_missing)) if part)
        lines.append(f"| {md(row.label)} | {md(unit)} | {md(row.before)} | {md(row.after)} | {change} |")
    return "\n".join(lines)


def _data(facts: Facts) -> str:
    counts = (
        ("rows read", facts.rows.entered),
        ("rows rejected", facts.rows.rejected),
        ("rows trained on", as_int(facts.train.get("train_rows"))),
        ("rows held out to measure with", as_int(facts.train.get("heldout_rows"))),
        ("answer tokens in the training rows", as_int(facts.train.get("trained_tokens"))),
        ("rows longer than the limit, trained on without their end", as_int(facts.train.get("truncated_rows"))),
    )
    lines = ["## Data", ""]
    lines += [f"- {name}: {f'{number:,}' if number is not None else 'n/a (not recorded)'}" for name, number in counts]
    return "\n".join(lines)


def _limits(facts: Facts) -> str:
    scores = words.is_reward_model(facts)
    known = "and knows only prompts like those it was trained on."
    like = "imitates its teacher"
    if scores:
        like = "prefers what its pairs prefer"
    elif words.by_rewards(facts):
        like = "seeks what its rewards reward"
    origin = "" if scores or words.by_rewards(facts) else "teacher, its "
    lines = [
        "## Limits",
        "",
        f"- It {like}, errors and biases included, {known}",
        f"- Terms of use follow from its {origin}base model and its data; none is stated here.",
    ]
    if scores:
        lines.insert(3, "- Only differences between scores of answers to one prompt mean something.")
    if facts.metrics:
        compared = "were measured" if scores else "compare it with its teacher,"
        lines.insert(3, f"- The figures above {compared} on held-out rows of the same data.")
    rows = as_int(facts.train.get("train_rows"))
    if rows is not None and rows < 1000:
        lines.insert(2, f"- It was trained on {rows:,} rows only: take it as a demonstration.")
    if as_dict(facts.setting("models.student")).get("config") is not None:
        lines.insert(2, "- It started from random weights: all that it knows is in its training rows.")
    return "\n".join(lines)
