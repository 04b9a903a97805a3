"""Figures of training by rewards: of the groups in a round, and of answers to held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from easydistill.methods.shared.rollouts import Written, repetition
from easydistill.rewards import RewardScores

_SAME = 1e-8
"""Rewards that differ by no more than this are equal, as in TRL."""


def zero_variance(rewards: Sequence[float], group: int) -> float:
    """Share of groups that teach nothing: all known rewards are equal, or fewer than two are known.

    Args:
        rewards: group by group; NaN for answers without a reward.
        group: answers per group.
    """
    alike = 0
    for at in range(0, len(rewards), group):
        known = [reward for reward in rewards[at : at + group] if not math.isnan(reward)]
        alike += not known or max(known) - min(known) <= _SAME
    return alike / max(1, len(rewards) // group)


def measure(written: Sequence[Written], scored: RewardScores, verified: Sequence[float | None]) -> dict[str, Any]:
    """Figures of answers to held-out prompts.

    Args:
        verified: 1 for a right final answer, 0 for a wrong one, None if unknown.
    """
    known = [value for value in verified if value is not None]
    found: dict[str, Any] = {
        **without_zero_abstentions(scored.summary()),
        "length": fmean(len(item.completion) for item in written),
        "ended": fmean(item.ended for item in written),
        "repetition": fmean(repetition(item.completion) for item in written),
    }
    if known:
        found["verified_accuracy"] = fmean(known)
        found["verified"] = len(known)
    return found


def without_zero_abstentions(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures without the abstention shares that are zero."""
    return {name: value for name, value in figures.items() if value or not name.endswith("/abstained")}
