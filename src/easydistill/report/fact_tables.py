"""Figures of any shape as lines and tables: an operator's facts, whatever an operator tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from easydistill.report.charts import meter
from easydistill.report.synthesis import Synthesis
from easydistill.report.synthesis_words import in_words
from easydistill.report.values import as_float, as_int
from easydistill.report.words import plain

ROWS_SHOWN = 40
NONE = "–"


@dataclass(frozen=True)
class TableRow:
    name: str
    values: tuple[str, ...]
    bar: str = ""


@dataclass(frozen=True)
class FactTable:
    """A fact that is made of others."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def has_bars(self) -> bool:
        return any(row.bar for row in self.rows)


def simple_facts(stage: Synthesis) -> list[tuple[str, str]]:
    """Name and value of the facts that are one value each."""
    return [(in_words(name), plain(value)) for name, value in _told(stage).items() if not _is_nested(value)]


def fact_tables(stage: Synthesis) -> list[FactTable]:
    """A table for each of the others: the outer names down the side, the inner ones along the top."""
    return [_table(name, value) for name, value in _told(stage).items() if _is_nested(value)]


def _told(stage: Synthesis) -> dict[str, Any]:
    """The facts without those that only repeat the funnel."""
    lost = {check.reason: check.lost for check in stage.checks}
    repeated = {"dropped": lost, "kept": stage.accepted}
    told = {name: value for name, value in stage.facts.items() if name not in repeated or value != repeated[name]}
    return {name: value for name, value in told.items() if value not in ({}, [])}


def _is_nested(value: Any) -> bool:
    """Whether a value holds others that deserve a table: a dict, or a list of dicts."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))


def _table(name: str, value: Any) -> FactTable:
    outer = value if isinstance(value, dict) else {str(number): item for number, item in enumerate(value, start=1)}
    if any(isinstance(item, dict) for item in outer.values()):
        return _grid(name, {key: item if isinstance(item, dict) else {"value": item} for key, item in outer.items()})
    # Bars compare counts; beside a share they would mislead.
    counts = {key: as_int(item) or 0 for key, item in outer.items()}
    largest = max(counts.values(), default=0)
    drawn = largest > 0 and min(counts.values()) >= 0 and all(as_int(item) is not None for item in outer.values())
    rows = [
        TableRow(key, (plain(item),), meter((counts[key] / largest, "after")) if drawn else "")
        for key, item in outer.items()
    ]
    return _cut(FactTable(in_words(name), ("Value",), tuple(rows)))


def _grid(name: str, outer: dict[str, dict[str, Any]]) -> FactTable:
    columns = list(dict.fromkeys(key for item in outer.values() for key in item))
    if all(column.isdigit() for column in columns):
        # Scores: their values come in order.
        columns.sort(key=int)
    empty = [key for key, item in outer.items() if all(as_float(number) == 0 for number in item.values())]
    # One row of zeros says something; a dozen hide the others.
    folded = empty if len(empty) > 3 and len(empty) < len(outer) else []
    rows = [
        TableRow(key, tuple(plain(item[column]) if column in item else NONE for column in columns))
        for key, item in outer.items()
        if key not in folded
    ]
    notes = (f"0 everywhere: {', '.join(folded)}.",) if folded else ()
    return _cut(FactTable(in_words(name), tuple(in_words(column) for column in columns), tuple(rows), notes))


def _cut(table: FactTable) -> FactTable:
    more = len(table.rows) - ROWS_SHOWN
    if more <= 0:
        return table
    notes = (*table.notes, f"{more:,} more are in the stage's manifest.json.")
    return FactTable(table.title, table.columns, table.rows[:ROWS_SHOWN], notes)
