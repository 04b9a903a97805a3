"""What a synthesis stage made, rejected and spent, from its metrics and files.

A stage is a synthesis stage if its metrics name an `operator`, whatever the stage is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from easydistill.report.document import Sample
from easydistill.report.samples import kept_rows, rejected_rows
from easydistill.report.values import as_dict, as_int, as_text, record

_SPENT_BY = "spent_by_"
_SPENT = "spent"
"""Metric of a stage that asks one model."""
_OWN_KEYS = frozenset({"operator", "funnel", "diversity"})


@dataclass(frozen=True)
class Check:
    """A check that candidates must pass."""

    reason: str
    """The reason given to rows that fail it."""
    entered: int
    left: int

    @property
    def lost(self) -> int:
        return self.entered - self.left


@dataclass(frozen=True)
class Spent:
    """What the answers of one model cost; None is unknown."""

    role: str
    answers: int | None
    answers_without_counts: int
    """Answers for which the server reported no token counts; the sums below are without them."""
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_prompt_tokens: int | None
    reasoning_tokens: int | None
    cost: float | None
    prices_as_of: str = ""
    """The date of its prices, if they are built in."""
    currency: str = ""
    """Of built-in prices."""


@dataclass(frozen=True)
class Synthesis:
    """A complete synthesis stage."""

    stage: str
    operator: str
    entered: int | None
    """Candidates."""
    accepted: int | None
    checks: tuple[Check, ...]
    """The checks that rejected rows, in the order in which they are made."""
    diversity: dict[str, Any]
    spent: tuple[Spent, ...]
    tokens: dict[str, int]
    facts: dict[str, Any]
    """What the operator reports about itself."""
    kept: tuple[Sample, ...] = ()
    rejected: tuple[tuple[Check, tuple[Sample, ...]], ...] = ()
    """Each check with samples; the check that rejected most rows comes first."""

    @property
    def lost(self) -> int | None:
        return None if self.entered is None or self.accepted is None else self.entered - self.accepted


def is_synthesis(metrics: dict[str, Any]) -> bool:
    """Whether a stage with these metrics ran an operator."""
    return isinstance(metrics.get("operator"), str) and bool(metrics["operator"])


def read_synthesis(stage: str, metrics: dict[str, Any], tokens: dict[str, int], folder: Path | None) -> Synthesis:
    """Read a stage for which `is_synthesis` holds; without its folder there are no samples."""
    entered, checks = _funnel(metrics.get("funnel"))
    by_loss = sorted(checks, key=lambda check: -check.lost)
    examples = {} if folder is None else rejected_rows(folder, {check.reason for check in checks})
    spent = {name: as_dict(value) for name, value in metrics.items() if name.startswith(_SPENT_BY)}
    return Synthesis(
        stage=stage,
        operator=as_text(metrics["operator"]),
        entered=entered,
        accepted=checks[-1].left if checks else entered,
        checks=checks,
        diversity=as_dict(metrics.get("diversity")),
        spent=tuple(read_bill(name.removeprefix(_SPENT_BY), value) for name, value in spent.items()),
        tokens=tokens,
        facts={name: value for name, value in metrics.items() if name not in _OWN_KEYS and name not in spent},
        kept=() if folder is None else kept_rows(folder),
        rejected=tuple((check, examples.get(check.reason, ())) for check in by_loss),
    )


def _funnel(value: Any) -> tuple[int | None, tuple[Check, ...]]:
    """Candidates, and the rows left after each check, up to the first entry that is not readable as a check."""
    steps: list[tuple[str, int]] = []
    for step in value if isinstance(value, list) else ():
        name, left = step if isinstance(step, list) and len(step) == 2 else (None, None)
        rows = as_int(left)
        if not isinstance(name, str) or rows is None or not 0 <= rows <= (steps[-1][1] if steps else rows):
            break
        steps.append((name, rows))
    if not steps:
        return None, ()
    return steps[0][1], tuple(Check(name, before, left) for (_, before), (name, left) in pairwise(steps))


def bills_of(metrics: dict[str, Any]) -> tuple[Spent, ...]:
    """What each model cost that a stage with these metrics asked behind an API."""
    own = as_dict(metrics.get(_SPENT))
    by_role = {name.removeprefix(_SPENT_BY): as_dict(v) for name, v in metrics.items() if name.startswith(_SPENT_BY)}
    if by_role.get("judge") == by_role.get("teacher"):
        # The teacher judges, and has one bill.
        by_role.pop("judge", None)
    return tuple(read_bill(role, value) for role, value in (({"teacher": own} if own else {}) | by_role).items())


def read_bill(role: str, value: dict[str, Any]) -> Spent:
    """A model's bill, as a ledger gives it."""
    uncounted = as_int(value.get("answers_without_counts")) or 0
    known: dict[str, Any] = {"role": role, "answers_without_counts": uncounted}
    if uncounted and as_int(value.get("answers")) == uncounted:
        # No answer was counted: sums of 0 mean unknown.
        known |= {"prompt_tokens": None, "completion_tokens": None}
    return record(Spent, value, **known)
