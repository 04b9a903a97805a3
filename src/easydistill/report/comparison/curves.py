"""The training losses of several runs in one chart."""

from __future__ import annotations

from collections.abc import Sequence

from easydistill.report import charts
from easydistill.report.charts import Frame
from easydistill.report.curve import Curve, smooth

COLOURS = 6
"""Colours of runs in the style sheet; further runs have them again, dashed."""


def run_class(number: int) -> str:
    """The CSS classes of a run's lines and marks, by its place in the comparison from 0."""
    return f"run-{number % COLOURS + 1}" + (" again" if number >= COLOURS else "")


def overlaid(curves: Sequence[tuple[int, str, Curve]], frame: Frame) -> str:
    """Smoothed losses over steps, as logged behind them.

    Args:
        curves: of each run with at least two points: its place in the comparison, its name, its curve.
    """
    drawn = [
        (number, name, [p.step for p in curve.points], [p.loss for p in curve.points]) for number, name, curve in curves
    ]
    every = [loss for _, _, _, losses in drawn for loss in losses]
    # The first steps may be far above all others, and are cut off where they would flatten the rest.
    low, high = min(every), _ceiling(drawn)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 0.5
    floor = max(0.0, low - margin) if low >= 0 else low - margin
    first, last = min(steps[0] for _, _, steps, _ in drawn), max(steps[-1] for _, _, steps, _ in drawn)
    plot = charts.Plot(frame, first, last, floor, high + margin)
    body = charts.loss_axes(plot)
    for number, _, steps, losses in drawn:
        even = smooth(losses) if len(losses) >= charts.SMOOTH_FROM else losses
        capped = [min(loss, high) for loss in losses]
        if even is not losses:
            body.append(plot.path(f"raw {run_class(number)}", zip(steps, capped, strict=True)))
        body.append(plot.path(f"line {run_class(number)}", zip(steps, (min(v, high) for v in even), strict=True)))
    ends = "; ".join(f"{name} ends at {losses[-1]:.3f} at step {steps[-1]:,}" for _, name, steps, losses in drawn)
    return charts.svg("chart", frame, f"Training loss by step: {ends}", body)


def _ceiling(drawn: Sequence[tuple[int, str, list[int], list[float]]]) -> float:
    """The largest loss that is shown: that of every run but a diverged one."""
    peaks = sorted(max(losses) for _, _, _, losses in drawn)
    typical = peaks[(len(peaks) - 1) // 2]
    return min(peaks[-1], typical * 3 if typical > 0 else peaks[-1])
