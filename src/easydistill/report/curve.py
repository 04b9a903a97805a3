"""The training losses in `metrics.jsonl`: the latest value of each step, as at most `MAX_POINTS` points."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from easydistill.data.numbers import as_float
from easydistill.engine.stage import kind_of
from easydistill.report.values import as_int, as_text, json_lines

MAX_POINTS = 600


@dataclass(frozen=True)
class Point:
    """A logged training step, or the mean of several consecutive ones."""

    step: int
    loss: float
    rate: float | None
    """Learning rate."""
    epoch: float | None


@dataclass(frozen=True)
class Curve:
    """What was logged of training."""

    points: tuple[Point, ...] = ()
    logged: int = 0
    """Steps that were logged with a finite loss."""
    not_finite: int = 0
    """Logged losses that are not finite; they have no point."""

    @property
    def per_point(self) -> int:
        """How many logged steps are in one point."""
        return -(-self.logged // MAX_POINTS) if self.logged else 1


def read_curve(path: Path) -> Curve:
    """The train stage's losses by step; in a job of several rounds, those of the last one.

    A step that is not later than the one before it means that training restarted, from a checkpoint or from the
    beginning: it replaces the earlier values of that step and of all later ones.
    """
    logged: list[tuple[int, Point | None]] = []
    current = ""
    for line in json_lines(path):
        step, stage = as_int(line.get("step")), as_text(line.get("stage"))
        if kind_of(stage) != "train" or step is None or "loss" not in line:
            continue
        if stage != current:
            current, logged = stage, []
        while logged and logged[-1][0] >= step:
            logged.pop()
        loss, rate, epoch = (as_float(line.get(name)) for name in ("loss", "learning_rate", "epoch"))
        logged.append((step, None if loss is None else Point(step, loss, rate, epoch)))
    points = [point for _, point in logged if point is not None]
    return Curve(thin(points, MAX_POINTS), len(points), len(logged) - len(points))


def thin(points: Sequence[Point], most: int) -> tuple[Point, ...]:
    """At most `most` points: each has the last step of a group of consecutive points, and their mean loss."""
    size = -(-len(points) // most)
    if size <= 1:
        return tuple(points)
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return tuple(
        Point(group[-1].step, statistics.fmean(point.loss for point in group), group[-1].rate, group[-1].epoch)
        for group in groups
    )


def smooth(values: Sequence[float]) -> list[float]:
    """Moving average over about a twentieth of the values, applied twice and centred, so that it does not lag.

    At the start, where losses fall fast, the window shrinks to stay centred. At the end it is cut off instead:
    otherwise the curve would end on the noise of the last value.
    """
    half = max(1, len(values) // 40)
    return _averaged(_averaged(values, half), half)


def _averaged(values: Sequence[float], half: int) -> list[float]:
    reach = (min(half, at) for at in range(len(values)))
    return [statistics.fmean(values[at - room : at + room + 1]) for at, room in enumerate(reach)]
