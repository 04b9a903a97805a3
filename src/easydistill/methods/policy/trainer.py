"""What PPO and GRPO share beside TRL: rows, their order, held-out measurements, alarms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from easydistill.contracts.reward import Rollout
from easydistill.data.records import Message
from easydistill.methods.shared.rollouts import PromptOrder, Written, repetition
from easydistill.rewards import RewardScores

ENTROPY_LEFT = 0.1
"""Share of the first steps' entropy below which the policy has collapsed."""
ZERO_VARIANCE = 0.8
"""Share of groups with equal rewards above which most of a step teaches nothing."""
CUT_OFF = 0.5
"""Share of answers that are cut off above which the limit decides, not the policy."""
ABSTAINED = 0.5
"""Share of answers that no reward has judged above which most of a step teaches nothing."""
_SAME = 1e-8
"""Rewards that differ by no more are equal, as TRL has it."""


@dataclass(frozen=True)
class PolicyRow:
    """A prompt to explore."""

    id: str
    prompt: list[int]
    """As token ids, the generation prompt included."""
    messages: tuple[Message, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The row's other fields, such as `answer`, for rewards."""


class GroupOrder(PromptOrder):
    """As `PromptOrder`, each prompt `group` times in a row.

    Args:
        rows: prompts there are.
        prompts: prompts of a round of generation.
        repeats: micro-batches that a round serves, which TRL reads the round again for.
    """

    def __init__(self, rows: int, prompts: int, group: int, seed: int, repeats: int) -> None:
        super().__init__(rows, prompts, seed, repeats)
        self._group = group

    def __len__(self) -> int:
        return super().__len__() * self._group

    def __iter__(self) -> Iterator[int]:
        return iter([index for index in super().__iter__() for _ in range(self._group)])


def rollout_of(row: PolicyRow, completion: Sequence[int], text: str, ended: bool) -> Rollout:
    """An answer as rewards see it."""
    return Rollout(row.messages, text, tuple(row.prompt), tuple(completion), ended, row.meta)


def zero_variance(rewards: Sequence[float], group: int) -> float:
    """Share of groups from which nothing is learned: those that are judged are worth the same, or fewer than two are.

    Args:
        rewards: group by group; NaN where nobody knows.
        group: answers of a group.
    """
    alike = 0
    for at in range(0, len(rewards), group):
        known = [reward for reward in rewards[at : at + group] if not math.isnan(reward)]
        alike += not known or max(known) - min(known) <= _SAME
    return alike / max(1, len(rewards) // group)


# --- held-out measurements ---------------------------------------------------------------------------------------


def measure(written: Sequence[Written], scored: RewardScores, verified: Sequence[float | None]) -> dict[str, Any]:
    """Figures of answers to held-out prompts.

    Args:
        verified: 1 for a right final answer, 0 for another, None where it is not known.
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
    """Who abstained is told where anybody did."""
    return {name: value for name, value in figures.items() if value or not name.endswith("/abstained")}


def standard_error(share: float, count: int) -> float:
    """Of a share of `count` independent answers, at least that of half an answer."""
    return max(math.sqrt(share * (1 - share) / count), 0.5 / count)


# --- alarms ------------------------------------------------------------------------------------------------------


@dataclass
class Alarms:
    """Signs that training goes wrong, each told once. Fed with what goes into `metrics.jsonl`."""

    raised: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What was noticed, by name: the step, and what was seen."""
    _first_entropy: float | None = None
    _heldout: list[tuple[int, float, float, int]] = field(default_factory=list)

    def step(self, step: int, figures: Mapping[str, Any]) -> list[str]:
        """Figures of a training step; returns new alarms as sentences."""
        found: list[str] = []
        # At 0 nothing can fall: a step whose answers were all of one kind, or the first of a policy that is sure.
        entropy = figures.get("entropy")
        if entropy:
            if self._first_entropy is None:
                self._first_entropy = entropy
            elif entropy < ENTROPY_LEFT * self._first_entropy:
                told = f"entropy fell from {self._first_entropy:.3f} to {entropy:.3f} nats: exploration ends"
                found += self._raise("entropy_collapse", step, told)
        if (share := figures.get("zero_variance_groups") or 0) > ZERO_VARIANCE:
            told = f"{share:.0%} of the groups have one reward for all answers: nothing is learned from them"
            found += self._raise("zero_variance", step, told)
        if (share := 1 - figures.get("ended", 1)) > CUT_OFF:
            found += self._raise("cut_off", step, f"{share:.0%} of the answers are cut off at max_new_tokens")
        if (share := figures.get("reward/abstained") or 0) > ABSTAINED:
            told = f"{share:.0%} of the answers were judged by no reward: nothing is learned from them"
            found += self._raise("abstained", step, told)
        return found

    def state(self) -> dict[str, Any]:
        """What a resumed run must know of the steps before."""
        return {"raised": self.raised, "first_entropy": self._first_entropy}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from another's `state`."""
        self.raised, self._first_entropy = dict(state["raised"]), state["first_entropy"]

    def heldout(self, step: int, figures: Mapping[str, Any]) -> list[str]:
        """Figures of held-out prompts; returns new alarms as sentences."""
        if "verified_accuracy" not in figures or "reward" not in figures:
            return []
        now = (step, float(figures["reward"]), float(figures["verified_accuracy"]), int(figures["verified"]))
        self._heldout.append(now)
        best = max(self._heldout, key=lambda entry: entry[2])
        # Two standard errors of the difference; the same prompts are measured, so this is on the safe side.
        room = 2 * math.hypot(standard_error(best[2], best[3]), standard_error(now[2], now[3]))
        if now[1] > best[1] and now[2] < best[2] - room:
            told = (
                f"since step {best[0]} the held-out reward rose from {best[1]:.3f} to {now[1]:.3f}, "
                f"and the share of right answers fell from {best[2]:.1%} to {now[2]:.1%}: the reward is being gamed"
            )
            return self._raise("reward_hacking", step, told)
        return []

    def _raise(self, name: str, step: int, told: str) -> list[str]:
        if name in self.raised:
            return []
        self.raised[name] = {"step": step, "told": told}
        return [told]
