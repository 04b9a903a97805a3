"""The disk that a run will take, against what is free where its directory is or will be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from easydistill.engine.machine.room import room_at
from easydistill.engine.stage import PlannedStage

_GB = 10**9
_CLOSE = 0.9
"""Share of the free space from which on a plan warns: what is told is an estimate."""


def free_bytes(directory: Path) -> int | None:
    """Free for this user where a directory is, or its nearest parent that exists; None if that cannot be told."""
    found = room_at(directory)
    return None if found is None else found.free


def disk_ahead(stages: Sequence[PlannedStage]) -> int:
    """Bytes that stages which are not done will take, as far as they are known."""
    return sum(stage.estimate.disk_bytes or 0 for stage in stages if stage.state != "done")


def disk_lines(stages: Sequence[PlannedStage], directory: Path) -> list[str]:
    """A line if the disk is too small, or nearly, with what takes the most and what would help."""
    needed, free = disk_ahead(stages), free_bytes(directory)
    if free is None or needed <= _CLOSE * free:
        return []
    parts: dict[str, int] = {}
    for stage in stages:
        if stage.state == "done":
            continue
        for name, size in (stage.estimate.disk_parts or {}).items():
            parts[name] = parts.get(name, 0) + size
    largest = ", ".join(f"{name} {size / _GB:.1f}" for name, size in sorted(parts.items(), key=lambda item: -item[1]))
    fits = "does not fit" if needed > free else "hardly fits"
    hint = "write to a larger disk (output_dir)"
    if parts.get("checkpoints", 0) > parts.get("signals", 0):
        hint = "lower training.save_total_limit, train with training.lora, or " + hint
    elif parts.get("signals"):
        hint = "keep less of the teacher's distributions (signals), or " + hint
    problem = f"this {fits} on the disk: it takes about {needed / _GB:.1f} GB ({largest})"
    return [f"{problem}, and {free / _GB:.1f} GB are free\n    → {hint}"]
