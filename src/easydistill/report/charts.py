"""Charts as SVG: pure functions of numbers. Colours are classes of the page's style sheet, so dark mode works."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from easydistill.report.curve import Point, smooth
from easydistill.report.disagreement import PositionLine
from easydistill.report.figures import rate_text, short

SMOOTH_FROM = 8
"""Curves of fewer points are not smoothed."""
NAMED_TICKS = 10
"""With more positions than this, a narrow frame names only every second one."""


@dataclass(frozen=True)
class Frame:
    """A chart's size and the margins around its plot, in pixels."""

    width: int
    height: int
    left: int = 48
    right: int = 58
    top: int = 12
    bottom: int = 42

    @property
    def end(self) -> int:
        """The plot's right edge."""
        return self.width - self.right

    @property
    def floor(self) -> int:
        """The plot's lower edge."""
        return self.height - self.bottom

    @property
    def roomy(self) -> bool:
        return self.width > 600


WIDE = Frame(920, 320)
NARROW = Frame(380, 270, left=40, right=54)
POSITIONS_WIDE = Frame(920, 310, right=8, top=34, bottom=60)
POSITIONS_NARROW = Frame(380, 260, left=40, right=6, top=34)
SMALL = Frame(300, 110, left=4, right=4, top=6, bottom=16)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers inside a range."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / count
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(index * step, digits) for index in range(first, last + 1)]


def whole_ticks(low: int, high: int, count: int = 6) -> list[int]:
    """The same for a range of integers."""
    found = [int(tick) for tick in ticks(low, high, count) if tick == int(tick)]
    return found if len(found) > 1 else sorted({low, high})


def meter(parts: Iterable[tuple[float, str]]) -> str:
    """A bar of consecutive parts: (share of the full width, CSS class). It only illustrates a figure next to it."""
    drawn = []
    at = 0.0
    for share, kind in parts:
        width = min(max(share, 0.0), 1.0 - at) * 100
        if width > 0:
            # A small share stays visible.
            width = max(width, 0.6)
            drawn.append(f'<rect class="{escape(kind)}" x="{at * 100:.2f}" y="0" width="{width:.2f}" height="8"/>')
        at = min(1.0, at + width / 100)
    return (
        '<svg class="meter" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        f"{''.join(drawn)}</svg>"
    )


@dataclass(frozen=True)
class Plot:
    """Maps data to places in a frame."""

    frame: Frame
    first: float
    last: float
    low: float
    high: float

    def x(self, value: float) -> float:
        share = (value - self.first) / ((self.last - self.first) or 1)
        return self.frame.left + share * (self.frame.end - self.frame.left)

    def y(self, value: float) -> float:
        return self.at((value - self.low) / (self.high - self.low))

    def at(self, share: float) -> float:
        """Height at a share of the plot's height."""
        return self.frame.floor - share * (self.frame.floor - self.frame.top)

    def path(self, kind: str, points: Iterable[tuple[float, float]]) -> str:
        places = (f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        return f'<path class="{kind}" d="M{" L".join(places)}"/>'

    def level(self, value: float, kind: str) -> list[str]:
        """A horizontal line with its value on the left."""
        y = self.y(value)
        line = f'<line class="{kind}" x1="{self.frame.left}" x2="{self.frame.end}" y1="{y:.1f}" y2="{y:.1f}"/>'
        return [line, _text("tick", self.frame.left - 8, y + 4, "end", short(value))]

    def caption(self, text: str) -> str:
        middle = (self.frame.left + self.frame.end) / 2
        return _text("axis", middle, self.frame.height - 4, "middle", text)


def _text(kind: str, x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def svg(kind: str, frame: Frame, label: str, body: Iterable[str], more: str = "") -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(label)}"{more}>'
        f"{''.join(body)}</svg>"
    )


def loss_curve(points: Sequence[Point], frame: Frame) -> str:
    """Training loss over steps, as logged and smoothed, with the learning rate as a faint line and axis.

    It takes at least two points, in order of their steps. The page's script reads `data-frame` and `data-range` to
    show the values under the pointer.
    """
    losses = [point.loss for point in points]
    low, high = min(losses), max(losses)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 0.5
    floor = max(0.0, low - margin) if low >= 0 else low - margin
    plot = Plot(frame, points[0].step, points[-1].step, floor, high + margin)
    label = (
        f"Training loss by step: {losses[0]:.3f} at step {plot.first:,}, {losses[-1]:.3f} at step {plot.last:,}, "
        f"lowest {low:.3f}"
    )
    body = [*loss_axes(plot), *_rate(points, plot)]
    steps = [point.step for point in points]
    smoothed = len(points) >= SMOOTH_FROM
    body.append(plot.path("raw" if smoothed else "line", zip(steps, losses, strict=True)))
    if smoothed:
        body.append(plot.path("line", zip(steps, smooth(losses), strict=True)))
    body.append(f'<line class="cross" x1="-9" x2="-9" y1="{frame.top}" y2="{frame.floor}"/>')
    body.append('<circle class="dot" r="4.5" cx="-9" cy="-9"/>')
    box = f"{frame.left} {frame.end} {frame.top} {frame.floor}"
    extent = f"{plot.first} {plot.last} {plot.low:.8g} {plot.high:.8g}"
    return svg("chart", frame, label, body, f' tabindex="0" data-frame="{box}" data-range="{extent}"')


def loss_axes(plot: Plot) -> list[str]:
    """The axes of losses over steps."""
    frame, floor = plot.frame, plot.frame.floor
    parts = [part for tick in ticks(plot.low, plot.high) for part in plot.level(tick, "grid")]
    parts.append(f'<line class="base" x1="{frame.left}" x2="{frame.end}" y1="{floor}" y2="{floor}"/>')
    for step in whole_ticks(int(plot.first), int(plot.last), 6 if frame.roomy else 4):
        x = plot.x(step)
        parts.append(f'<line class="base" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 5}"/>')
        parts.append(_text("tick", x, floor + 19, "middle", short(step)))
    return [*parts, plot.caption("optimiser step")]


def _rate(points: Sequence[Point], plot: Plot) -> list[str]:
    """The learning rate, with its peak at nine tenths of the height, and its own axis on the right."""
    known = [(point.step, point.rate) for point in points if point.rate is not None]
    peak = max((rate for _, rate in known), default=0.0)
    if peak <= 0 or len(known) < 2:
        return []
    scale = Plot(plot.frame, plot.first, plot.last, 0.0, peak / 0.9)
    names = ((0.9, rate_text(peak)), (0.45, rate_text(peak / 2)), (0.0, "0"))
    right = plot.frame.end + 8
    return [scale.path("rate", known), *(_text("tick faint", right, plot.at(at) + 4, "start", it) for at, it in names)]


def position_chart(lines: Sequence[PositionLine], frame: Frame) -> str:
    """Mean KL divergence by position in the answer, before and after training; `lines` is not empty."""
    high = 1.06 * max(value for line in lines for value in (line.before, line.after) if value is not None) or 1.0
    # Each range has a slot of equal width, with its point in the middle.
    plot = Plot(frame, -0.5, len(lines) - 0.5, 0.0, high)
    body = _position_axes(lines, plot)
    ends = []
    for side in ("before", "after"):
        known = [(at, line, value) for at, line in enumerate(lines) if (value := getattr(line, side)) is not None]
        if not known:
            continue
        body.append(plot.path(f"by-{side}", ((at, value) for at, _, value in known)))
        for at, line, value in known:
            title = f"tokens {line.label}, {side} training: {value:.3f} nats (mean of {line.tokens:,})"
            place = f'cx="{plot.x(at):.1f}" cy="{plot.y(value):.1f}"'
            body.append(f'<circle class="by-{side}" r="4" {place}><title>{escape(title)}</title></circle>')
        (_, first, start), (_, last, end) = known[0], known[-1]
        ends.append(f"{side} training {start:.3f} at token {first.label} and {end:.3f} at {last.label}")
    return svg("chart", frame, f"Mean KL divergence by position in the answer: {'; '.join(ends)}", body)


def _position_axes(lines: Sequence[PositionLine], plot: Plot) -> list[str]:
    floor, roomy = plot.frame.floor, plot.frame.roomy
    parts = [_text("axis", 0, 14, "start", "KL divergence, nats per token")]
    for tick in ticks(0.0, plot.high):
        parts += plot.level(tick, "grid" if tick else "base")
    every = 2 if len(lines) > (NAMED_TICKS + 2 if roomy else NAMED_TICKS) else 1
    for at, line in list(enumerate(lines))[::every]:
        # A narrow frame has room for the end of the range only.
        name = line.label if roomy else line.label.rpartition("–")[2]
        parts.append(_text("tick", plot.x(at), floor + 19, "middle", name))
        if roomy:
            parts.append(_text("tick faint", plot.x(at), floor + 36, "middle", f"n = {line.tokens:,}"))
    wide = "token of the answer, counted from 1 (n: how many were measured)"
    return [*parts, plot.caption(wide if roomy else "token of the answer, up to")]


def line_chart(points: Sequence[tuple[int, float]], title: str) -> str:
    """A small chart of one figure over the steps; the axis names the first and last step, the title the values."""
    frame = SMALL
    values = [value for _, value in points]
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    (first, _), (last, _) = points[0], points[-1]
    plot = Plot(frame, first, max(last, first + 1), low, high)
    places = [f"{plot.x(step):.1f},{plot.y(value):.1f}" for step, value in points]
    dots = ['<circle class="dot" cx="{}" cy="{}" r="2.5"/>'.format(*place.split(",")) for place in places]
    axis = frame.floor + 2
    body = [
        f'<line class="axis" x1="{frame.left}" x2="{frame.end}" y1="{axis}" y2="{axis}"/>',
        f'<polyline class="course-line" points="{" ".join(places)}"/>',
        *(dots if len(points) <= 40 else ()),
        f'<text x="{frame.left}" y="{frame.height - 3}">step {first:,}</text>',
        f'<text x="{frame.end}" y="{frame.height - 3}" text-anchor="end">{last:,}</text>',
    ]
    return svg("small-chart", frame, title, body)
