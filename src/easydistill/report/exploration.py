"""The course of training by rewards: what answers were worth, how many were right, what was warned of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.report.charts import line_chart, short
from easydistill.report.values import as_dict, as_float, as_int, as_text, json_lines

STAGES = {"policy": "while training", "heldout": "held out"}
"""What `metrics.jsonl` calls the entries, and what the report does."""
LABELS = {
    "reward": "Reward",
    "verified_accuracy": "Right final answers",
    "entropy": "Entropy, nats a token",
    "kl": "KL from the start, nats a token",
    "length": "Length of answers, tokens",
    "ended": "Answers that ended by themselves",
    "zero_variance_groups": "Groups with equal rewards",
    "clipped_low": "Clipped: fell too far",
    "clipped_high": "Clipped: rose too far",
    "explained_variance": "Explained variance of the value",
    "value_loss": "Loss of the value",
}
"""The figures that are shown, in this order, before the single rewards."""
SINGLE = "reward/"


@dataclass(frozen=True)
class Course:
    """One figure over the steps."""

    label: str
    where: str
    points: tuple[tuple[int, float], ...]

    @property
    def first(self) -> str:
        return short(float(f"{self.points[0][1]:.4g}"))

    @property
    def last(self) -> str:
        return short(float(f"{self.points[-1][1]:.4g}"))

    @property
    def chart(self) -> str:
        return line_chart(self.points, f"{self.label}, {self.where}: from {self.first} to {self.last}")


@dataclass(frozen=True)
class Exploration:
    """All of them, and the alarms."""

    courses: tuple[Course, ...]
    alarms: tuple[tuple[int, str], ...]
    """(step, what was seen)."""


def read_exploration(path: Path, train: Mapping[str, Any]) -> Exploration | None:
    """From `metrics.jsonl` and the train stage's metrics; None where nothing was trained by rewards.

    What was overtaken by an attempt that began at an earlier step is left out.
    """
    found: dict[tuple[str, str], dict[int, float]] = {}
    for line in json_lines(path):
        stage, step = as_text(line.get("stage")), as_int(line.get("step"))
        if stage not in STAGES or step is None:
            continue
        for name, value in line.items():
            number = as_float(value)
            if number is None or (name not in LABELS and not _is_single(name)):
                continue
            course = found.setdefault((stage, name), {})
            for later in [other for other in course if other >= step]:
                del course[later]
            course[step] = number
    if not any(stage == "policy" for stage, _ in found):
        return None
    singles = sorted({name for _, name in found if name not in LABELS})
    courses = [
        Course(_label(name), STAGES[stage], tuple(found[stage, name].items()))
        for name in (*LABELS, *singles)
        for stage in ("heldout", "policy")
        if (stage, name) in found
    ]
    alarms = [
        (as_int(alarm.get("step")) or 0, as_text(alarm.get("told")))
        for alarm in map(as_dict, as_dict(train.get("alarms")).values())
    ]
    return Exploration(tuple(courses), tuple(sorted(alarms)))


def _label(name: str) -> str:
    return LABELS.get(name) or f"Reward {name.removeprefix(SINGLE)}"


def _is_single(name: str) -> bool:
    return name.startswith(SINGLE) and not name.endswith("/abstained")
