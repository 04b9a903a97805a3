"""Charts as SVG text: pure functions of numbers. Colours are CSS variables of the page, so that dark mode works."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 40


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span a range."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / count
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def smooth(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """Exponential moving average without bias at the start."""
    average, total, out = 0.0, 0.0, []
    for value in values:
        average = weight * average + (1 - weight) * value
        total = weight * total + (1 - weight)
        out.append(average / total)
    return out


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def loss_curve(steps: Sequence[float], losses: Sequence[float], rates: Sequence[float]) -> str:
    """Training loss over steps, raw and smoothed, with the learning rate as a faint line."""
    low, high = min(losses), max(losses)
    margin = (high - low) * 0.06 or 0.5
    low, high = max(0.0, low - margin), high + margin
    first, last = steps[0], steps[-1]
    top_rate = max(rates) or 1.0

    def x(step: float) -> float:
        return LEFT + (step - first) / ((last - first) or 1) * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return TOP + (high - loss) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Training loss from '
        f'{losses[0]:.3f} to {losses[-1]:.3f} over {int(last)} steps" data-chart>'
    ]
    for tick in ticks(low, high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in ticks(first, last, 6):
        if tick == int(tick):
            parts.append(
                f'<text class="tick" x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>'
            )
    parts.append(
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">step</text>'
    )
    floor, room = HEIGHT - BOTTOM, HEIGHT - TOP - BOTTOM
    rate_points = [(x(step), floor - rate / top_rate * room * 0.9) for step, rate in zip(steps, rates, strict=True)]
    raw = [(x(step), y(loss)) for step, loss in zip(steps, losses, strict=True)]
    even = [(x(step), y(loss)) for step, loss in zip(steps, smooth(losses), strict=True)]
    parts.append(f'<path class="rate" d="{_path(rate_points)}"/>')
    parts.append(f'<path class="raw" d="{_path(raw)}"/><path class="line" d="{_path(even)}"/>')
    points = [
        [round(px, 1), round(py, 1), f"step {step:g} · loss {loss:.4f} · lr {rate:.2e}"]
        for (px, py), step, loss, rate in zip(raw, steps, losses, rates, strict=True)
    ]
    parts.append('<circle class="dot" r="4" cx="-9" cy="-9"/><text class="tip" x="0" y="24"></text>')
    parts.append(f"<metadata>{escape(json.dumps(points), quote=False)}</metadata></svg>")
    return "".join(parts)


def bars(items: Sequence[tuple[str, float, str]], label: str) -> str:
    """Horizontal bars: (name, value, text beside it)."""
    longest = max((value for _, value, _ in items), default=0) or 1.0
    row, width = 30, 620
    height = row * len(items) + 6
    parts = [f'<svg class="chart bars" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">']
    for index, (name, value, text) in enumerate(items):
        y = index * row + 4
        length = max(2.0, value / longest * (width - 330))
        parts.append(f'<text class="name" x="140" y="{y + 16}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect class="bar" x="150" y="{y + 3}" width="{length:.1f}" height="18" rx="4"/>')
        parts.append(f'<text class="value" x="{158 + length:.1f}" y="{y + 17}">{escape(text)}</text>')
    return "".join(parts) + "</svg>"
