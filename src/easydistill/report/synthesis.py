"""What a synthesis stage made, refused and took, out of its metrics and files.

A stage is one of these if its metrics name an `operator`, whatever the stage is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from easydistill.report.samples import KeptRow, RejectedRow, kept_rows, rejected_rows
from easydistill.report.values import as_dict, as_float, as_int, as_text

_SPENT_BY = "spent_by_"
_OWN_KEYS = frozenset({"operator", "funnel", "diversity"})


@dataclass(frozen=True)
class Check:
    """A check that candidates must pass."""

    reason: str
    """What rows that do not pass are rejected for."""
    entered: int
    left: int

    @property
    def lost(self) -> int:
        return self.entered - self.left


@dataclass(frozen=True)
class Spent:
    """What the answers of one model took; None is unknown."""

    role: str
    answers: int | None
    uncounted: int
    """Answers whose tokens the server did not tell; they are not in the counts."""
    prompt: int | None
    completion: int | None
    cached: int | None
    reasoning: int | None
    cost: float | None


@dataclass(frozen=True)
class Synthesis:
    """A complete synthesis stage."""

    stage: str
    operator: str
    entered: int | None
    """Candidates."""
    accepted: int | None
    checks: tuple[Check, ...]
    """Those that refused rows, in the order in which they are made."""
    diversity: dict[str, Any]
    spent: tuple[Spent, ...]
    tokens: dict[str, int]
    facts: dict[str, Any]
    """What the operator tells of itself."""
    kept: tuple[KeptRow, ...] = ()
    rejected: tuple[tuple[Check, tuple[RejectedRow, ...]], ...] = ()
    """Samples of each check, the check that refused most rows first."""

    @property
    def lost(self) -> int | None:
        return None if self.entered is None or self.accepted is None else self.entered - self.accepted


def is_synthesis(metrics: dict[str, Any]) -> bool:
    """Whether a stage with these metrics ran an operator."""
    return isinstance(metrics.get("operator"), str) and bool(metrics["operator"])


def read_synthesis(stage: str, metrics: dict[str, Any], tokens: dict[str, int], folder: Path | None) -> Synthesis:
    """Read a stage for which `is_synthesis` holds; without its folder, no samples."""
    entered, checks = _funnel(metrics.get("funnel"))
    by_loss = sorted(checks, key=lambda check: -check.lost)
    examples = {} if folder is None else rejected_rows(folder, {check.reason for check in checks})
    return Synthesis(
        stage=stage,
        operator=as_text(metrics["operator"]),
        entered=entered,
        accepted=checks[-1].left if checks else entered,
        checks=checks,
        diversity=as_dict(metrics.get("diversity")),
        spent=tuple(
            _spent(name.removeprefix(_SPENT_BY), as_dict(value))
            for name, value in metrics.items()
            if name.startswith(_SPENT_BY)
        ),
        tokens=tokens,
        facts={
            name: value
            for name, value in metrics.items()
            if name not in _OWN_KEYS and not name.startswith(_SPENT_BY)
        },
        kept=() if folder is None else kept_rows(folder),
        rejected=tuple((check, examples.get(check.reason, ())) for check in by_loss),
    )  # fmt: skip


def _funnel(value: Any) -> tuple[int | None, tuple[Check, ...]]:
    """Candidates, and what each check left of them; it ends where a step is none."""
    steps: list[tuple[str, int]] = []
    for step in value if isinstance(value, list) else ():
        name, left = step if isinstance(step, list) and len(step) == 2 else (None, None)
        rows = as_int(left)
        if not isinstance(name, str) or rows is None or not 0 <= rows <= (steps[-1][1] if steps else rows):
            break
        steps.append((name, rows))
    if not steps:
        return None, ()
    checks = pairwise(steps)
    return steps[0][1], tuple(Check(name, before, left) for (_, before), (name, left) in checks)


def _spent(role: str, value: dict[str, Any]) -> Spent:
    answers, uncounted = as_int(value.get("answers")), as_int(value.get("answers_without_counts")) or 0
    # Where no answer was counted, the sums are 0 because nothing is known.
    told = not uncounted or answers != uncounted
    return Spent(
        role=role,
        answers=answers,
        uncounted=uncounted,
        prompt=as_int(value.get("prompt_tokens")) if told else None,
        completion=as_int(value.get("completion_tokens")) if told else None,
        cached=as_int(value.get("cached_prompt_tokens")),
        reasoning=as_int(value.get("reasoning_tokens")),
        cost=as_float(value.get("cost")),
    )
