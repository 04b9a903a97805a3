"""Where the seconds of training by own answers went, from the `seconds` lines of `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from easydistill.data.numbers import as_float
from easydistill.engine.progress import duration
from easydistill.report.document import Table, columns, row
from easydistill.report.values import as_int, as_text, json_lines

STAGE = "seconds"
LABELS = {
    "rollouts": "The student writes answers",
    "weights": "Its weights go to the engine that writes",
    "teacher": "The teacher scores them",
    "rewards": "They are rewarded",
    "scores": "Other scores of answers",
    "update": "The student learns",
    "heldout": "Held-out prompts are measured",
    "other": "Between these: checkpoints, data, waiting",
}
"""The phases, in this order."""
LEARNING, REST = "update", "other"


@dataclass(frozen=True)
class Spent:
    """Seconds by phase."""

    seconds: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def told(self) -> str:
        """The answer to the question that one has: how much of the time the student learns."""
        learning, rest = (self._share(name) for name in (LEARNING, REST))
        return (
            f"Of the time of training, the student learned in {learning:.0%}; {rest:.0%} was lost between the phases."
        )

    @property
    def table(self) -> Table:
        rows = (
            row(label, duration(self.seconds[name]), f"{self._share(name):.0%}")
            for name, label in LABELS.items()
            if name in self.seconds
        )
        return Table("Phase", columns("Time", "Share"), tuple(rows), style="tight")

    def _share(self, name: str) -> float:
        return self.seconds.get(name, 0.0) / self.total


def read_spent(path: Path) -> Spent | None:
    """All that was logged; what a later attempt did again is left out. None if nothing was."""
    kept: list[tuple[int, dict[str, float]]] = []
    for line in json_lines(path):
        step = as_int(line.get("step"))
        if as_text(line.get("stage")) != STAGE or step is None:
            continue
        while kept and kept[-1][0] >= step:
            kept.pop()
        numbers = ((name, as_float(line.get(name))) for name in LABELS)
        kept.append((step, {name: value for name, value in numbers if value is not None and value >= 0}))
    total: dict[str, float] = {}
    for _, seconds in kept:
        for name, value in seconds.items():
            total[name] = total.get(name, 0.0) + value
    return Spent(total) if sum(total.values()) > 0 else None
