"""What an operator reports about itself, in whatever shape, as lines and tables."""

from __future__ import annotations

from typing import Any

from easydistill.data.numbers import as_float
from easydistill.report.document import Row, Table, columns, row
from easydistill.report.figures import in_words, plain
from easydistill.report.synthesis import Synthesis
from easydistill.report.values import as_counts

ROWS_SHOWN = 40
ABSENT = "–"


def simple_facts(stage: Synthesis) -> list[tuple[str, str]]:
    """(name, value) of the facts that are a single value."""
    return [(in_words(name), plain(value)) for name, value in _reported(stage).items() if not _is_nested(value)]


def fact_tables(stage: Synthesis) -> list[Table]:
    """A table for each of the other facts: outer names are rows, inner names columns."""
    return [_table(name, value) for name, value in _reported(stage).items() if _is_nested(value)]


def _reported(stage: Synthesis) -> dict[str, Any]:
    """The facts that are not empty and do not repeat the funnel."""
    repeated = {"dropped": {check.reason: check.lost for check in stage.checks}, "kept": stage.accepted}
    return {
        name: value
        for name, value in stage.facts.items()
        if value not in ({}, []) and (name not in repeated or value != repeated[name])
    }


def _is_nested(value: Any) -> bool:
    """Whether a value needs a table: an object, or a list of objects."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))


def _table(name: str, value: Any) -> Table:
    outer = value if isinstance(value, dict) else {str(number): item for number, item in enumerate(value, start=1)}
    if any(isinstance(item, dict) for item in outer.values()):
        return _grid(name, {key: item if isinstance(item, dict) else {"value": item} for key, item in outer.items()})
    # Bars compare counts; next to a share they would mislead.
    counts = as_counts(outer)
    largest = max(counts.values(), default=0)
    drawn = len(counts) == len(outer) and largest > 0 and min(counts.values()) >= 0
    rows = [
        row(key, plain(item), bars=((counts[key] / largest, "after"),) if drawn else ()) for key, item in outer.items()
    ]
    return _cut(name, ["value"], rows)


def _grid(name: str, outer: dict[str, dict[str, Any]]) -> Table:
    inner = list(dict.fromkeys(key for item in outer.values() for key in item))
    if all(column.isdigit() for column in inner):
        # Scores, in the order of their values.
        inner.sort(key=int)
    folded = _folded(outer)
    rows = [
        row(key, *(plain(item[column]) if column in item else ABSENT for column in inner))
        for key, item in outer.items()
        if key not in folded
    ]
    return _cut(name, inner, rows, *([f"0 everywhere: {', '.join(folded)}."] if folded else []))


def _folded(outer: dict[str, dict[str, Any]]) -> list[str]:
    """Rows of zeros that only a note names: one is information, a dozen would hide the others."""
    empty = [key for key, item in outer.items() if all(as_float(number) == 0 for number in item.values())]
    return empty if 3 < len(empty) < len(outer) else []


def _cut(name: str, inner: list[str], rows: list[Row], *notes: str) -> Table:
    more = len(rows) - ROWS_SHOWN
    if more > 0:
        notes = (*notes, f"{more:,} more are in the stage's manifest.json.")
    heads = columns(*map(in_words, inner))
    return Table(in_words(name), heads, tuple(rows[:ROWS_SHOWN]), style="tight reported", footnotes=notes)
