"""The job `evaluate`: how fast models write, as a section of the report."""

from __future__ import annotations

from typing import Any

from easydistill.data.numbers import as_float
from easydistill.report import document as doc
from easydistill.report.figures import MISSING
from easydistill.report.values import as_dict, as_text, as_texts

SCORED = "num scored"
"""Style of figures with an interval below them."""
_SPEEDS = (
    ("single_tokens_per_second", "One prompt, tokens/s", "{:,.1f}"),
    ("saturated_tokens_per_second", "Saturated, tokens/s", "{:,.1f}"),
    ("first_token_seconds", "First token, s", "{:,.3f}"),
)


def speed_section(found: dict[str, Any], mark: str) -> doc.Section:
    models = {name: as_dict(value) for name, value in as_dict(found.get("models")).items()}
    settings = tuple((key.replace("_", " "), as_text(value)) for key, value in as_dict(found.get("settings")).items())
    notes = [doc.Text(note, "soft") for note in as_texts(found.get("notes"))]
    words = "One engine and machine, the same prompts, models in turns. Medians, with the least and the most of the "
    over = as_text(found.get("yardstick"))
    intro = doc.Text(f"{words}rounds. Speed-ups are over {over}; seconds a problem are one at a time.")
    sizes = doc.Text("Sizes, and what a problem takes", "heading")
    blocks = (
        intro,
        _speeds_table(models),
        sizes,
        _sizes_table(models),
        *notes,
        doc.Text("Measured with", "heading"),
        doc.Pairs(settings),
    )
    return doc.Section(f"speed{mark}", "How fast they write", "Speed", blocks)


def _speeds_table(models: dict[str, dict[str, Any]]) -> doc.Table:
    rows = []
    for name, model in models.items():
        cells = [_spread(model.get(key), form) for key, _, form in _SPEEDS]
        cells += [_spread(model.get(key), "{:.2f}×") for key in ("speed_up_single", "speed_up")]
        rows.append(doc.row(name, *cells))
    titles = [title for _, title, _ in _SPEEDS]
    titles += ["Speed-up, one prompt", "Speed-up, saturated"]
    return doc.Table("Model", tuple(doc.Column(title, SCORED) for title in titles), tuple(rows), style="tight tasks")


def _sizes_table(models: dict[str, dict[str, Any]]) -> doc.Table:
    rows = []
    for name, model in models.items():
        tokens = as_float(model.get("tokens_per_problem"))
        speed = as_float(as_dict(model.get("single_tokens_per_second")).get("median"))
        seconds = MISSING if tokens is None or not speed else f"{tokens / speed:,.1f}"
        length = MISSING if tokens is None else f"{tokens:,.0f}"
        sizes = (_bytes(model.get("disk_bytes")), _bytes(model.get("memory_bytes")))
        rows.append(doc.row(name, *sizes, length, seconds))
    titles = ("On disk", "Weights in memory", "Tokens a problem", "Seconds a problem")
    return doc.Table("Model", doc.columns(*titles), tuple(rows), style="tight tasks")


def _bytes(value: Any) -> str:
    number = as_float(value)
    return MISSING if number is None else f"{number / 1e9:,.2f} GB"


def _spread(value: Any, form: str) -> doc.Cell:
    """A median with the least and the most below it."""
    found = as_dict(value)
    median, least, most = (as_float(found.get(name)) for name in ("median", "least", "most"))
    if median is None or least is None or most is None:
        return doc.Cell(MISSING)
    return with_below(form.format(median), f"{form.format(least)} … {form.format(most)}")


def with_below(text: str, below: str) -> doc.Cell:
    """A figure with what belongs to it on a line of its own."""
    return doc.Cell(f"{text} ({below})", lines=(text, below))
