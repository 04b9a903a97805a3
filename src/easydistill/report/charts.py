"""Charts as SVG text: pure functions of numbers. Colours are classes of the page's style sheet, so dark mode works."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from easydistill.report.curve import Point, smooth
from easydistill.report.disagreement import PositionLine

SMOOTH_FROM = 8
"""Fewer points than this need no smoothing."""


@dataclass(frozen=True)
class Frame:
    """A chart's size and the margins around its plot, in pixels."""

    width: int
    height: int
    left: int = 48
    right: int = 58
    top: int = 12
    bottom: int = 42


WIDE = Frame(920, 320)
NARROW = Frame(380, 270, left=40, right=54)
POSITIONS_WIDE = Frame(920, 310, right=8, top=34, bottom=60)
POSITIONS_NARROW = Frame(380, 260, left=40, right=6, top=34)
NAMED_TICKS = 10
"""With more positions than this only every second is named where the frame is narrow."""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers inside a range, about `count` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / count
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(index * step, digits) for index in range(first, last + 1)]


def whole_ticks(low: int, high: int, count: int = 6) -> list[int]:
    """The same for a range of whole numbers."""
    found = [int(tick) for tick in ticks(low, high, count) if tick == int(tick)]
    return found if len(found) > 1 else sorted({low, high})


def short(value: float) -> str:
    """A tick's label: 12k instead of 12000."""
    if abs(value) >= 10_000 and value == int(value):
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:,.6g}"


def rate_text(rate: float) -> str:
    """A learning rate as people write it: 3e-4."""
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def meter(*parts: tuple[float, str]) -> str:
    """A bar of shares of its whole width, one after the other: (share, CSS class). Decoration beside a figure."""
    drawn = []
    at = 0.0
    for share, kind in parts:
        width = min(max(share, 0.0), 1.0 - at) * 100
        if width > 0:
            # What is not nothing is seen.
            width = max(width, 0.6)
            drawn.append(f'<rect class="{escape(kind)}" x="{at * 100:.2f}" y="0" width="{width:.2f}" height="8"/>')
        at = min(1.0, at + width / 100)
    return (
        '<svg class="meter" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        f"{''.join(drawn)}</svg>"
    )


class _Plot:
    """Where data lies in a frame."""

    def __init__(self, points: Sequence[Point], frame: Frame) -> None:
        losses = [point.loss for point in points]
        low, high = min(losses), max(losses)
        margin = (high - low) * 0.06 or abs(high) * 0.1 or 0.5
        self.low, self.high = low - margin, high + margin
        if low >= 0:
            self.low = max(0.0, self.low)
        self.first, self.last = points[0].step, points[-1].step
        self.frame = frame

    def x(self, step: float) -> float:
        frame = self.frame
        share = (step - self.first) / ((self.last - self.first) or 1)
        return frame.left + share * (frame.width - frame.left - frame.right)

    def y(self, loss: float) -> float:
        return self.at((loss - self.low) / (self.high - self.low))

    def at(self, share: float) -> float:
        """Height at a share of the plot, counted from its floor."""
        frame = self.frame
        return frame.height - frame.bottom - share * (frame.height - frame.top - frame.bottom)


def loss_curve(points: Sequence[Point], frame: Frame) -> str:
    """Training loss over steps, as logged and smoothed, with the learning rate as a faint line and axis.

    `points` are at least two, in order of their steps. The page's script reads `data-frame` and `data-range` to
    show the values under the pointer.
    """
    plot = _Plot(points, frame)
    first, last = points[0], points[-1]
    label = (
        f"Training loss by step: {first.loss:.3f} at step {first.step:,}, {last.loss:.3f} at step {last.step:,}, "
        f"lowest {min(point.loss for point in points):.3f}"
    )
    body = [*_grid(plot), *_rate(points, plot)]
    raw = [(plot.x(point.step), plot.y(point.loss)) for point in points]
    if len(points) >= SMOOTH_FROM:
        even = smooth([point.loss for point in points])
        line = [(plot.x(point.step), plot.y(loss)) for point, loss in zip(points, even, strict=True)]
        body.append(f'<path class="raw" d="{_path(raw)}"/><path class="line" d="{_path(line)}"/>')
    else:
        body.append(f'<path class="line" d="{_path(raw)}"/>')
    floor = frame.height - frame.bottom
    body.append(f'<line class="cross" x1="-9" x2="-9" y1="{frame.top}" y2="{floor}"/>')
    body.append('<circle class="dot" r="4.5" cx="-9" cy="-9"/>')
    box = f"{frame.left} {frame.width - frame.right} {frame.top} {floor}"
    extent = f"{plot.first} {plot.last} {plot.low:.8g} {plot.high:.8g}"
    return (
        f'<svg class="chart" viewBox="0 0 {frame.width} {frame.height}" role="img" tabindex="0" '
        f'aria-label="{escape(label)}" data-frame="{box}" data-range="{extent}">{"".join(body)}</svg>'
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _text(kind: str, x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _grid(plot: _Plot) -> list[str]:
    frame = plot.frame
    right, floor = frame.width - frame.right, frame.height - frame.bottom
    parts = []
    for tick in ticks(plot.low, plot.high):
        y = plot.y(tick)
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text("tick", frame.left - 8, y + 4, "end", short(tick)))
    parts.append(f'<line class="base" x1="{frame.left}" x2="{right}" y1="{floor}" y2="{floor}"/>')
    for step in whole_ticks(plot.first, plot.last, 6 if frame.width > 600 else 4):
        parts.append(
            f'<line class="base" x1="{plot.x(step):.1f}" x2="{plot.x(step):.1f}" y1="{floor}" y2="{floor + 5}"/>'
        )
        parts.append(_text("tick", plot.x(step), floor + 19, "middle", short(step)))
    parts.append(_text("axis", (frame.left + right) / 2, frame.height - 4, "middle", "optimiser step"))
    return parts


def _rate(points: Sequence[Point], plot: _Plot) -> list[str]:
    """The learning rate from 0 to its peak at nine tenths of the height, and an axis of its own on the right."""
    known = [(point.step, point.rate) for point in points if point.rate is not None]
    peak = max((rate for _, rate in known), default=0.0)
    if peak <= 0 or len(known) < 2:
        return []
    line = [(plot.x(step), plot.at(0.9 * rate / peak)) for step, rate in known]
    right = plot.frame.width - plot.frame.right + 8
    return [
        f'<path class="rate" d="{_path(line)}"/>',
        _text("tick faint", right, plot.at(0.9) + 4, "start", rate_text(peak)),
        _text("tick faint", right, plot.at(0.45) + 4, "start", rate_text(peak / 2)),
        _text("tick faint", right, plot.at(0.0) + 4, "start", "0"),
    ]


class _Slots:
    """Where buckets of positions lie in a frame: side by side, on a floor of zero."""

    def __init__(self, lines: Sequence[PositionLine], frame: Frame) -> None:
        self.high = (
            1.06 * max(value for line in lines for value in (line.before, line.after) if value is not None) or 1.0
        )
        self.size = (frame.width - frame.left - frame.right) / len(lines)
        self.frame = frame

    def x(self, at: int) -> float:
        return self.frame.left + (at + 0.5) * self.size

    def y(self, value: float) -> float:
        frame = self.frame
        return frame.height - frame.bottom - value / self.high * (frame.height - frame.top - frame.bottom)


def position_chart(lines: Sequence[PositionLine], frame: Frame) -> str:
    """Mean KL divergence by position in the answer, before training and after it; `lines` is not empty."""
    slots = _Slots(lines, frame)
    body = _position_axes(lines, slots)
    told = []
    for side in ("before", "after"):
        known = [(at, line, value) for at, line in enumerate(lines) if (value := getattr(line, side)) is not None]
        if not known:
            continue
        points = [(slots.x(at), slots.y(value)) for at, _, value in known]
        body.append(f'<path class="by-{side}" d="{_path(points)}"/>')
        for (x, y), (_, line, value) in zip(points, known, strict=True):
            title = f"tokens {line.label}, {side} training: {value:.3f} nats (mean of {line.tokens:,})"
            body.append(
                f'<circle class="by-{side}" r="4" cx="{x:.1f}" cy="{y:.1f}"><title>{escape(title)}</title></circle>'
            )
        first, last = known[0], known[-1]
        told.append(f"{side} training {first[2]:.3f} at token {first[1].label} and {last[2]:.3f} at {last[1].label}")
    label = f"Mean KL divergence by position in the answer: {'; '.join(told)}"
    return (
        f'<svg class="chart" viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(body)}</svg>"
    )


def _position_axes(lines: Sequence[PositionLine], slots: _Slots) -> list[str]:
    frame = slots.frame
    right, floor = frame.width - frame.right, frame.height - frame.bottom
    roomy = frame.width > 600
    parts = [_text("axis", 0, 14, "start", "KL divergence, nats per token")]
    for tick in ticks(0.0, slots.high):
        y = slots.y(tick)
        kind = "grid" if tick else "base"
        parts.append(f'<line class="{kind}" x1="{frame.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text("tick", frame.left - 8, y + 4, "end", short(tick)))
    every = 2 if len(lines) > (NAMED_TICKS + 2 if roomy else NAMED_TICKS) else 1
    for at, line in enumerate(lines):
        if at % every:
            continue
        # A narrow frame has room for the bucket's end only.
        name = line.label if roomy else line.label.rpartition("–")[2]
        parts.append(_text("tick", slots.x(at), floor + 19, "middle", name))
        if roomy:
            parts.append(_text("tick faint", slots.x(at), floor + 36, "middle", f"n = {line.tokens:,}"))
    name = "token of the answer, counted from 1 (n: how many were measured)" if roomy else "token of the answer, up to"
    parts.append(_text("axis", (frame.left + right) / 2, frame.height - 4, "middle", name))
    return parts


SMALL = Frame(300, 110, left=4, right=4, top=6, bottom=16)


def line_chart(points: Sequence[tuple[int, float]], title: str) -> str:
    """A small chart of one figure over the steps; the axis names its first and last step, the title says the values."""
    frame = SMALL
    steps, values = [step for step, _ in points], [value for _, value in points]
    low, high = min(values), max(values)
    width, height = frame.width - frame.left - frame.right, frame.height - frame.top - frame.bottom
    across, up = max(1, steps[-1] - steps[0]), (high - low) or 1.0

    def place(step: int, value: float) -> str:
        level = (value - low) / up if high > low else 0.5
        return f"{frame.left + (step - steps[0]) / across * width:.1f},{frame.top + (1 - level) * height:.1f}"

    line = " ".join(place(*point) for point in points)
    dots = "".join(
        '<circle class="dot" cx="{}" cy="{}" r="2.5"/>'.format(*place(*point).split(",")) for point in points
    )
    floor = frame.height - frame.bottom
    return (
        f'<svg class="small-chart" viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(title)}">'
        f'<line class="axis" x1="{frame.left}" x2="{frame.width - frame.right}" y1="{floor + 2}" y2="{floor + 2}"/>'
        f'<polyline class="course-line" points="{line}"/>{dots if len(points) <= 40 else ""}'
        f'<text x="{frame.left}" y="{frame.height - 3}">step {steps[0]:,}</text>'
        f'<text x="{frame.width - frame.right}" y="{frame.height - 3}" text-anchor="end">{steps[-1]:,}</text></svg>'
    )
