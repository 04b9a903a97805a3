"""A plan as JSON: `easydistill plan --json`. Sizes are in bytes, times in seconds; what is not known is null."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.engine.stage import Estimate, PlannedStage, total_of
from easydistill.planning.disk import disk_ahead, disk_lines, free_bytes
from easydistill.planning.hours import total_seconds


@dataclass(frozen=True)
class PlanDocument:
    """All that `plan` knows."""

    stages: tuple[PlannedStage, ...]
    total: Estimate
    """Of all stages: calls, tokens, cost and disk summed up, memory of the one that takes most."""
    seconds: float | None
    """Of all that is to run; null if one stage's time is not known."""
    disk_ahead_bytes: int
    """Of what is to run."""
    disk_free_bytes: int | None
    """Where the run directory is or will be."""
    notes: tuple[str, ...]
    """What concerns the run as a whole, a line each."""

    @classmethod
    def of(cls, stages: Sequence[PlannedStage], directory: Path) -> PlanDocument:
        return cls(
            tuple(stages),
            total_of(stages),
            total_seconds(stages),
            disk_ahead(stages),
            free_bytes(directory),
            tuple(disk_lines(stages, directory)),
        )

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
