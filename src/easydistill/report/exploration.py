"""Training on own answers over its steps: rewards, the share of right answers, what the answers are like, alarms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.data.numbers import as_float
from easydistill.report.charts import line_chart
from easydistill.report.document import Column, HtmlBlock, Table, columns, row
from easydistill.report.figures import short
from easydistill.report.values import as_dict, as_int, as_text, json_lines

STAGES = {"heldout": "held out", "policy": "while training", "rollouts": "while training"}
"""The stages of `metrics.jsonl` that are shown, and their names in the report."""
LABELS = {
    "reward": "Reward",
    "verified_accuracy": "Right final answers",
    "entropy": "Entropy, nats per token",
    "kl": "KL from the start, nats per token",
    "reverse_kl": "Reverse KL from the teacher, nats per token",
    "repetition": "Repeated 4-grams",
    "rollout_length": "Length of answers, tokens",
    "length": "Length of answers, tokens",
    "length_limit": "Longest answer allowed, tokens",
    "ended": "Answers that ended by themselves",
    "zero_variance_groups": "Groups with equal rewards",
    "clipped_low": "Clipped: probability fell too far",
    "clipped_high": "Clipped: probability rose too far",
    "explained_variance": "Explained variance of the value",
    "value_loss": "Value loss",
}
"""The figures that are shown, in this order; the single rewards follow."""
SINGLE = "reward/"


@dataclass(frozen=True)
class Course:
    """A figure over the steps."""

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
class Courses(HtmlBlock):
    """Small charts, each with a caption."""

    items: tuple[Course, ...]


@dataclass(frozen=True)
class Exploration:
    """All figures, and the alarms."""

    courses: tuple[Course, ...]
    alarms: tuple[tuple[int, str], ...]
    """(step, message)."""
    rewarded: bool = True
    """Whether there were rewards; else a teacher scored the answers."""
    fit: str = ""
    """Which divergence was chosen to suit the student, and why."""

    @property
    def table(self) -> Table:
        rows = (row(course.label, course.where, course.first, course.last) for course in self.courses)
        return Table("Figure", (Column("Measured", ""), *columns("First", "Last")), tuple(rows), only="md")


def read_exploration(path: Path, train: Mapping[str, Any]) -> Exploration | None:
    """From `metrics.jsonl` and the train stage's metrics; None if the job does not train on own answers."""
    found = _measured(path)
    rewarded = any(stage == "policy" for stage, _ in found)
    if not rewarded and not any(stage == "rollouts" for stage, _ in found):
        return None
    singles = sorted({name for _, name in found if name not in LABELS})
    courses = [
        Course(_label(name), where, tuple(found[stage, name].items()))
        for name in (*LABELS, *singles)
        for stage, where in STAGES.items()
        if (stage, name) in found
    ]
    alarms = map(as_dict, as_dict(train.get("alarms")).values())
    messages = sorted((as_int(alarm.get("step")) or 0, as_text(alarm.get("told"))) for alarm in alarms)
    fit = as_dict(train.get("fit"))
    chosen = f"on_policy.beta is {short(as_float(fit.get('beta')) or 0.0)}, {as_text(fit.get('told'))}." if fit else ""
    return Exploration(tuple(courses), tuple(messages), rewarded, chosen)


def _measured(path: Path) -> dict[tuple[str, str], dict[int, float]]:
    """(stage, figure) → step → value, without what a later attempt replaced because it started at an earlier step."""
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
            while course and next(reversed(course)) >= step:
                course.popitem()
            course[step] = number
    return found


def _label(name: str) -> str:
    return LABELS.get(name) or f"Reward {name.removeprefix(SINGLE)}"


def _is_single(name: str) -> bool:
    return name.startswith(SINGLE) and not name.endswith("/abstained")
