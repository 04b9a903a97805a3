"""The results of `run.py` as SVG: a row an arm, a panel a figure; small dots are seeds, the bar is their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Any

NAMES = {
    "start": "the student that all go on from",
    "offline": "offline KD, equal steps",
    "offline_seconds": "offline KD, equal seconds",
    "jsd_0": "JSD, no rollouts",
    "jsd_half": "JSD, half rollouts",
    "jsd_ones": "JSD, new rollouts in each step",
    "fkl_0": "forward KL, no rollouts",
    "fkl_half": "forward KL, half rollouts",
    "fkl_cool": "forward KL, rollouts at 0.7",
    "rkl_half": "reverse KL, half rollouts",
    "mixed": "reverse KL, forward on the teacher's text",
}
PANELS = {
    "reverse_kl": ("reverse KL, own text", "nats, lower is better"),
    "entropy": ("entropy, own text", "nats; line: the teacher's"),
    "ended": ("answers that end", "share; line: the teacher's"),
    "kl": ("KL, held out", "nats, lower is better"),
    "rouge_l": ("ROUGE-L, held out", "higher is better"),
}
NAMED, WIDTH, GAP, ROW, TOP, FOOT = 280, 160, 24, 24, 52, 30
OFFLINE, ON_POLICY, START = "#1f6fb4", "#c2410c", "#4b5563"


def plot(runs: Sequence[Mapping[str, Mapping[str, Any]]], teacher: Mapping[str, float]) -> str:
    """
    Args:
        runs: of each seed, arm → figures.
        teacher: figures of the teacher's own text, drawn as lines.
    """
    arms = [arm for arm in NAMES if any(arm in found for found in runs)]
    width, height = NAMED + len(PANELS) * (WIDTH + GAP), TOP + len(arms) * ROW + FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for at, arm in enumerate(arms):
        y = _middle(at)
        parts.append(f'<text x="{NAMED - 14}" y="{y + 4}" text-anchor="end">{escape(NAMES[arm])}</text>')
        parts.append(f'<line x1="{NAMED}" x2="{width}" y1="{y}" y2="{y}" stroke="#eee"/>')
    for at, figure in enumerate(PANELS):
        parts += _panel(figure, NAMED + at * (WIDTH + GAP), arms, runs, teacher)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _middle(row: int) -> float:
    return TOP + (row + 0.5) * ROW


def _panel(
    figure: str,
    left: float,
    arms: Sequence[str],
    runs: Sequence[Mapping[str, Mapping[str, Any]]],
    teacher: Mapping[str, float],
) -> list[str]:
    values = {arm: [found[arm][figure] for found in runs if arm in found] for arm in arms}
    marked = [teacher[figure]] if figure in teacher and figure != "reverse_kl" else []
    every = [*marked, *(value for some in values.values() for value in some)]
    low, high = min(every), max(every)
    reach = (high - low) or 1.0

    def x(value: float) -> float:
        return left + 8 + (value - low) / reach * (WIDTH - 16)

    title, unit = PANELS[figure]
    floor = TOP + len(arms) * ROW
    parts = [
        f'<text x="{left}" y="18" font-weight="bold">{escape(title)}</text>',
        f'<text x="{left}" y="34" fill="#666" font-size="11">{escape(unit)}</text>',
    ]
    for value, anchor in ((low, "start"), (high, "end")):
        parts.append(f'<text x="{x(value):.1f}" y="{floor + 18}" text-anchor="{anchor}" fill="#666">{value:.3g}</text>')
    parts += [
        f'<line x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP}" y2="{floor}" stroke="#999" stroke-dasharray="4 3"/>'
        for value in marked
    ]
    for at, arm in enumerate(arms):
        y = _middle(at)
        colour = START if arm == "start" else OFFLINE if arm.startswith("offline") else ON_POLICY
        parts += [
            f'<circle cx="{x(value):.1f}" cy="{y}" r="3.2" fill="{colour}" fill-opacity="0.45"/>'
            for value in values[arm]
        ]
        mean = x(fmean(values[arm]))
        parts.append(
            f'<line x1="{mean:.1f}" x2="{mean:.1f}" y1="{y - 8}" y2="{y + 8}" stroke="{colour}" stroke-width="3"/>'
        )
    return parts
