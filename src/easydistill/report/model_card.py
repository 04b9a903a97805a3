"""`student/README.md`: what the student is, how it was made, its results, how to load it, and its limits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from easydistill.data.files import write_text
from easydistill.data.numbers import as_float
from easydistill.report.build import printable
from easydistill.report.collect import Facts, collect
from easydistill.report.figures import plural
from easydistill.report.markdown import code, md, table
from easydistill.report.metrics import metrics_table, verdict
from easydistill.report.settings import settings
from easydistill.report.snippet import snippet
from easydistill.report.values import as_int, as_text
from easydistill.report.words import student_words, teacher_words

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SETTINGS = {"Asking the teacher", "Chats", "Training", "Student's size", "Seeds"}


def write_model_card(run_directory: Path) -> None:
    """Write the card next to the student, if there is one.

    A student of an earlier config keeps its card, since this run's figures are not about it.
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
    """The hub id of the model that the student was made from, or None."""
    reference = as_text(facts.setting("models.student.from") or facts.setting("models.student"))
    if _HUB_ID.fullmatch(reference) is None or reference.endswith(".gguf") or Path(reference).exists():
        return None
    return reference


def card(facts: Facts) -> str:
    """The card as Markdown, with the front matter that model hubs read."""
    front: dict[str, Any] = {"library_name": "transformers"}
    base = base_model(facts)
    if base is not None:
        front["base_model"] = base
    writes = "image-text-to-text" if facts.sees else "text-generation"
    task, tag = ("text-classification", "reward-model") if facts.scores else (writes, "distillation")
    front |= {"pipeline_tag": task, "tags": ["easydistill", tag]}
    how_to_load = snippet("path/to/this/directory", scores=facts.scores, sees=facts.sees)
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {md(facts.summary.name)}",
        _how_it_was_made(facts),
        _results(facts),
        _data(facts),
        f"## How to load it\n\nWith plain transformers:\n\n```python\n{how_to_load}```",
        _limits(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _model(name: str, origin: str) -> str:
    """A model's name and origin, without paths and addresses: a card may be published."""
    private = "/" in origin or "\\" in origin or origin == "unchanged"
    return code(name) if private or not origin else f"{code(name)} ({md(origin)})"


def _how_it_was_made(facts: Facts) -> str:
    job = f" (job type {code(facts.summary.job_type)})" if facts.summary.job_type else ""
    lines = [
        f"## How it was made\n\n{'A reward model, trained' if facts.scores else 'Distilled'} with EasyDistill{job}.\n",
        f"- Teacher: {_model(*teacher_words(facts))}",
        f"- Student: {_model(*student_words(facts))}",
        *(f"- {name}: {md(text)}" for name, text in settings(facts) if name in _SETTINGS),
    ]
    steps, loss = as_int(facts.train.get("steps")), as_float(facts.train.get("final_loss"))
    if steps is not None:
        end = "" if loss is None else f", training loss {loss:.3f} at the end"
        lines.append(f"- {steps:,} optimiser steps{end}")
    return "\n".join(lines)


def _results(facts: Facts) -> str:
    head = "## Before and after training"
    if not facts.metrics:
        return f"{head}\n\nn/a: the student was not evaluated in this run."
    return f"{head}\n\n{md(verdict(facts))}\n\n{table(metrics_table(facts))}"


def _data(facts: Facts) -> str:
    names = {
        "train_rows": "rows trained on",
        "heldout_rows": "rows held out for evaluation",
        "trained_tokens": "answer tokens in the training rows",
        "truncated_rows": "rows longer than the limit, trained on without their end",
    }
    counts = {"rows read": facts.rows.entered, "rows rejected": facts.rows.rejected}
    counts |= {text: as_int(facts.train.get(name)) for name, text in names.items()}
    known = ((name, "n/a (not recorded)" if number is None else f"{number:,}") for name, number in counts.items())
    return "\n".join(["## Data", "", *(f"- {name}: {text}" for name, text in known)])


def _limits(facts: Facts) -> str:
    rows = as_int(facts.train.get("train_rows"))
    goal = "imitates its teacher"
    if facts.scores:
        goal = "prefers what its pairs prefer"
    elif facts.by_rewards:
        goal = "maximises its rewards"
    compared = "were measured" if facts.scores else "compare it with its teacher,"
    origin = "" if facts.scores or facts.by_rewards else "teacher, its "
    lines = {
        f"It {goal}, errors and biases included, and knows only prompts like those it was trained on.": True,
        "It started from random weights: everything it knows is in its training rows.": facts.setting(
            "models.student.config"
        )
        is not None,
        f"It was trained on only {plural(rows or 0, 'row')}: treat it as a demonstration.": rows is not None
        and rows < 1000,
        "Its chat template sets the variables named above where nobody else does.": bool(
            facts.setting("dataset.template_kwargs")
        ),
        f"The figures above {compared} on held-out rows of the same data.": bool(facts.metrics),
        "Only differences between scores of answers to one prompt are meaningful.": facts.scores,
        f"The terms of use follow from its {origin}base model and its data; none are stated here.": True,
    }
    return "\n".join(["## Limits", "", *(f"- {line}" for line, applies in lines.items() if applies)])
