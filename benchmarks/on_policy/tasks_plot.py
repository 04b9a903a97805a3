"""The courses of `tasks.py` as SVG: held-out score against CPU seconds, a panel a task, a thin line a seed.

The scale of seconds is logarithmic: GRPO takes ten times as many as the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from easydistill.report.charts import Frame, Plot

COLOURS = {
    "offline": "#1f6fb4",
    "reverse_kl": "#c2410c",
    "jsd": "#a16207",
    "sampled": "#7e22ce",
    "offline_reverse_kl": "#15803d",
    "grpo": "#4b5563",
}
NAMES = {
    "offline": "offline KD",
    "reverse_kl": "on-policy, reverse KL",
    "jsd": "on-policy, JSD",
    "sampled": "on-policy, sampled reverse KL",
    "offline_reverse_kl": "offline, then reverse KL",
    "grpo": "GRPO",
}
PANEL = Frame(460, 330, left=52, right=12, top=34, bottom=46)
LEGEND = 58
SECONDS = (3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000, 2000, 5000)


def plot(tasks: dict[str, Any]) -> str:
    """
    Args:
        tasks: of each its `courses`, by arm and seed, and the `teacher`'s and the `target` score.
    """
    panels = [_panel(name, found, at * PANEL.width) for at, (name, found) in enumerate(tasks.items())]
    arms = [arm for arm in COLOURS if any(arm in found["courses"] for found in tasks.values())]
    width, height = PANEL.width * max(1, len(tasks)), PANEL.height + LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        *panels,
        *_legend(arms, width),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _panel(name: str, found: dict[str, Any], left: int) -> str:
    courses = found["courses"]
    seconds = [point["seconds"] for every in courses.values() for course in every for point in course if point["step"]]
    first, last = 0.85 * min(seconds), 1.15 * max(seconds)
    place = Plot(PANEL, math.log10(first), math.log10(last), 0.0, 1.0)
    parts = [f'<text x="{PANEL.left}" y="18" font-weight="bold">{escape(name)}</text>', *_axes(place, first, last)]
    for label, key, dash in (("teacher", "teacher", ""), ("target", "target", ' stroke-dasharray="5 4"')):
        y = place.y(found[key])
        below = 13 if key == "target" else -5
        parts.append(f'<line x1="{PANEL.left}" x2="{PANEL.end}" y1="{y:.1f}" y2="{y:.1f}" stroke="#999"{dash}/>')
        parts.append(f'<text x="{PANEL.left + 4}" y="{y + below:.1f}" fill="#666">{label}</text>')
    parts += [_line(course, COLOURS[arm], place) for arm, every in courses.items() for course in every]
    return f'<g transform="translate({left} 0)">{"".join(parts)}</g>'


def _axes(place: Plot, first: float, last: float) -> list[str]:
    parts = []
    for percent in (0, 25, 50, 75, 100):
        y = place.y(percent / 100)
        parts.append(f'<line x1="{PANEL.left}" x2="{PANEL.end}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{PANEL.left - 6}" y="{y + 4:.1f}" text-anchor="end">{percent} %</text>')
    for value in SECONDS:
        if first <= value <= last:
            x = place.x(math.log10(value))
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{PANEL.floor}" y2="{PANEL.floor + 5}" stroke="#888"/>')
            parts.append(f'<text x="{x:.1f}" y="{PANEL.floor + 19}" text-anchor="middle">{value}</text>')
    middle = (PANEL.left + PANEL.end) / 2
    parts.append(f'<text x="{middle}" y="{PANEL.height - 8}" text-anchor="middle">CPU seconds</text>')
    return parts


def _line(course: Sequence[dict[str, float]], colour: str, place: Plot) -> str:
    points = [(place.x(math.log10(point["seconds"])), place.y(point["score"])) for point in course if point["step"]]
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in points)
    return f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-opacity="0.7"/>{dots}'


def _legend(arms: Sequence[str], width: int) -> list[str]:
    """Three names a row."""
    parts = []
    columns = max(1, width // 230)
    for at, arm in enumerate(arms):
        x, y = PANEL.left + at % columns * 220, PANEL.height + 16 + at // columns * 20
        parts.append(
            f'<line x1="{x}" x2="{x + 22}" y1="{y - 4}" y2="{y - 4}" stroke="{COLOURS[arm]}" stroke-width="3"/>'
        )
        parts.append(f'<text x="{x + 28}" y="{y}">{escape(NAMES[arm])}</text>')
    return parts
