"""What came of a sweep's variants, as lines: the best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easydistill.data.numbers import as_float
from easydistill.engine.progress import duration
from easydistill.evaluation.metrics import METRICS
from easydistill.report.metrics import KINDS, figure_of, value_text
from easydistill.report.values import as_dict, json_object

_SHOWN = 4
"""Metrics beside the one that decides the order."""


@dataclass(frozen=True)
class Outcome:
    """A variant after its run."""

    name: str
    directory: Path
    state: str
    """`done`, `failed`, or `not run`."""
    exit_code: int | None = None
    error: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    """After training, on held-out rows."""
    seconds: float | None = None

    @classmethod
    def read(cls, name: str, directory: Path, state: str, exit_code: int | None, error: str = "") -> Outcome:
        """With the figures that its run has left."""
        summary = json_object(directory / "summary.json")
        after = as_dict(as_dict(summary.get("metrics")).get("after")) if state == "done" else {}
        metrics = {key: number for key, value in after.items() if (number := as_float(value)) is not None}
        stages = as_dict(summary.get("stages")).values()
        known = [seconds for stage in stages if (seconds := as_float(as_dict(stage).get("seconds"))) is not None]
        return cls(name, directory, state, exit_code, error, metrics, sum(known) if known else None)


def is_metric(name: str) -> bool:
    """Whether some evaluation may measure this."""
    kind = name.partition("/")[0]
    return kind in KINDS or kind in METRICS.names() or kind == "reward"


def deciding(by: str | None, outcomes: Sequence[Outcome]) -> str | None:
    """The metric that orders the variants: the given one, else the first measured one that has a better direction."""
    if by is not None:
        return by
    measured = {name for outcome in outcomes for name in outcome.metrics}
    return next((name for name in KINDS if name in measured and KINDS[name].better), None)


def ordered(outcomes: Sequence[Outcome], by: str | None) -> list[Outcome]:
    """The best first; those without the metric last, in their own order."""
    sign = -1 if by is not None and figure_of(by).better == "higher" else 1

    def rank(outcome: Outcome) -> tuple[bool, float]:
        value = outcome.metrics.get(by) if by is not None else None
        return value is None, sign * (value or 0.0)

    return sorted(outcomes, key=rank)


def lines(outcomes: Sequence[Outcome], by: str | None) -> list[str]:
    """The table, and what is to be said of its order."""
    by = deciding(by, outcomes)
    measured = list(dict.fromkeys(name for outcome in outcomes for name in outcome.metrics))
    known = sorted(measured, key=lambda name: list(KINDS).index(name) if name in KINDS else len(KINDS))
    columns = [by] if by in measured else []
    columns += [name for name in known if name != by and figure_of(name).better][:_SHOWN]
    head = ["variant", "state", *columns, "time"]
    rows = [head, *(_cells(outcome, columns) for outcome in ordered(outcomes, by))]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    told = [_line(row, widths) for row in rows]
    if by is not None and by in measured:
        told.append(f"ordered by {by}, {figure_of(by).better or 'lower'} is better (--by chooses another)")
    elif by is not None:
        told.append(f"note: no variant measured {by}; measured are {', '.join(known) or 'none'}")
    return told


def _cells(outcome: Outcome, columns: Sequence[str]) -> list[str]:
    values = [value_text(name, outcome.metrics.get(name)) for name in columns]
    time = "n/a" if outcome.seconds is None else duration(outcome.seconds)
    return [outcome.name, outcome.state, *values, time]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    left, right = cells[:2], cells[2:]
    parts = [cell.ljust(width) for cell, width in zip(left, widths[:2], strict=True)]
    parts += [cell.rjust(width) for cell, width in zip(right, widths[2:], strict=True)]
    return "  ".join(parts).rstrip()


def as_json(outcome: Outcome) -> dict[str, Any]:
    """For `sweep.json`."""
    return {
        "name": outcome.name,
        "directory": str(outcome.directory),
        "state": outcome.state,
        "exit_code": outcome.exit_code,
        "error": outcome.error,
        "metrics": outcome.metrics,
        "seconds": outcome.seconds,
    }
