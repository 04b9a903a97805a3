"""How long stages will take, by what this machine's earlier ones took (`engine/rates.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from easydistill.engine.rates import Expected, expected, known_rates
from easydistill.engine.stage import PlannedStage


def with_hours(stages: Sequence[PlannedStage]) -> list[PlannedStage]:
    """The same stages with the seconds that each will take; nothing for what is done, or of an unknown kind."""
    rates = known_rates()
    found: list[PlannedStage] = []
    for stage in stages:
        ahead = None if stage.state == "done" else expected(stage.estimate.work, rates)
        found.append(stage if ahead is None else replace(stage, seconds=_remaining(stage, ahead)))
    return found


def _remaining(stage: PlannedStage, ahead: Expected) -> float:
    """Less what an earlier attempt has answered."""
    rows, done = stage.estimate.rows, stage.estimate.done_rows
    return ahead.seconds * (1 - min(1.0, done / rows)) if rows and done else ahead.seconds


def total_seconds(stages: Sequence[PlannedStage]) -> float | None:
    """Of all that is to run; None if that of a stage which has work to do is unknown."""
    pending = [stage for stage in stages if stage.state != "done"]
    known = [stage.seconds for stage in pending if stage.seconds is not None]
    return sum(known) if known and len(known) == len(pending) else None
