"""A plan at a glance: a block of lines for each stage, then what all take together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from easydistill.engine.rates import rates_file
from easydistill.engine.stage import Estimate, PlannedStage, total_of
from easydistill.planning.disk import disk_ahead, disk_lines, free_bytes
from easydistill.planning.hours import total_seconds

_GB = 10**9
_RANGES = {"prompt_tokens": "tokens in", "completion_tokens": "tokens out", "cost": "cost"}


def plan_lines(stages: Sequence[PlannedStage], directory: Path) -> Iterator[str]:
    """The lines that `easydistill plan` prints."""
    for number, stage in enumerate(stages, start=1):
        yield f"{number}. {stage.name:<10} {_state(stage)}"
        yield from (f"     {line}" for line in _facts(stage))
        yield from (f"     note: {note}" for note in stage.notes)
    yield from (f"note: {line}" for line in disk_lines(stages, directory))
    unknown = [stage for stage in stages if stage.state != "done" and stage.seconds is None]
    if names := ", ".join(stage.name for stage in unknown if stage.estimate.work is not None):
        kept = "" if rates_file() is None else ": a run keeps one, and `easydistill plan --probe` measures this machine"
        yield f"time unknown of {names}: nothing like it has been run here{kept}"
    if names := ", ".join(stage.name for stage in _untold(stages)):
        yield f"nothing can be told of {names}: of a model that a stage loads, the config must be on this machine"
    if any(stage.state.startswith("waits") for stage in stages):
        yield "figures of what waits are limits: as if no row were rejected, of the shortest and the longest answers"
    if facts := ", ".join(_total(stages, directory)):
        yield f"in all: {facts}"


def _untold(stages: Sequence[PlannedStage]) -> list[PlannedStage]:
    """The stages that are to run and of which nothing is known."""
    return [stage for stage in stages if stage.state != "done" and stage.estimate == Estimate()]


def _state(stage: PlannedStage) -> str:
    if stage.state == "done":
        return "kept"
    if stage.state != "pending":
        return stage.state
    return f"runs: {stage.why}" if stage.why else "runs"


def _facts(stage: PlannedStage) -> Iterator[str]:
    """What is known of a stage, a line for each kind of thing; nothing of what is done but its rows."""
    estimate = stage.estimate
    if asked := ", ".join(_asked(estimate)):
        yield asked
    if stage.state == "done":
        return
    if estimate.memory_bytes is not None:
        yield f"memory {gigabytes(estimate.memory_bytes)}{_parts(estimate.memory_parts, estimate.memory_bytes)}"
    if estimate.disk_bytes is not None:
        yield f"disk {gigabytes(estimate.disk_bytes)}{_parts(estimate.disk_parts, estimate.disk_bytes)}"
    if stage.seconds is not None:
        yield f"time about {duration_words(stage.seconds)}"


def _asked(estimate: Estimate) -> Iterator[str]:
    if estimate.rows is not None:
        done = f", {estimate.done_rows:,} of them done" if estimate.done_rows else ""
        yield f"{estimate.rows:,} rows{done}"
    if estimate.calls is not None:
        most = estimate.calls_at_most
        yield f"{estimate.calls:,} calls" + (f" ({most:,} at most)" if most is not None else "")
    for name, word in _RANGES.items():
        if (ends := getattr(estimate, name)) is not None:
            yield f"{word} {range_words(ends)}"
    if estimate.from_answers:
        yield f"judged by {estimate.from_answers:,} answers"
    if estimate.cut_answers:
        yield f"{estimate.cut_answers:,} of them cut off"


def _total(stages: Sequence[PlannedStage], directory: Path) -> Iterator[str]:
    # What is kept takes nothing more.
    total = total_of(stage for stage in stages if stage.state != "done")
    if total.calls is not None:
        fewest = sum(stage.estimate.calls or 0 for stage in stages if stage.state != "done")
        yield f"{range_words((fewest, total.calls))} calls"
    for name, word in _RANGES.items():
        if (ends := getattr(total, name)) is not None:
            yield f"{word} {range_words(ends)}"
    least = "at least " if _untold(stages) else ""
    if total.memory_bytes is not None:
        yield f"memory {least}{gigabytes(total.memory_bytes)}"
    needed, free = disk_ahead(stages), free_bytes(directory)
    if needed:
        yield f"disk {least}{gigabytes(needed)}" + (f" of {gigabytes(free)} that are free" if free is not None else "")
    if (seconds := total_seconds(stages)) is not None:
        yield f"time about {duration_words(seconds)}"


def _parts(parts: Mapping[str, int] | None, total: int) -> str:
    """The larger parts of a size, the largest first."""
    found = sorted((parts or {}).items(), key=lambda item: -item[1])
    shown = [f"{name} {gigabytes(size)}" for name, size in found if size >= 0.05 * total]
    return f" ({', '.join(shown)})" if len(found) > 1 else ""


def gigabytes(size: int) -> str:
    """Bytes in words: three digits are more than an estimate knows."""
    value = size / _GB
    if value >= 0.1:
        return f"{value:,.0f} GB" if value >= 10 else f"{value:.2g} GB"
    return f"{size / 10**6:.0f} MB" if size >= 10**6 else f"{size / 1000:.0f} kB"


def range_words(ends: tuple[Any, Any]) -> str:
    low, high = (f"{end:,.4g}" if isinstance(end, float) else f"{end:,}" for end in ends)
    return low if low == high else f"{low} to {high}"


def duration_words(seconds: float) -> str:
    """A time in words, as roughly as it is known."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
