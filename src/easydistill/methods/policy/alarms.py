"""Signs that training by rewards goes wrong, noticed from the figures that are logged anyway."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ENTROPY_LEFT = 0.1
"""Share of the first steps' entropy below which the policy has collapsed."""
ZERO_VARIANCE = 0.8
"""Share of groups with equal rewards above which most of a step teaches nothing."""
CUT_OFF = 0.5
"""Share of answers that are cut off above which the limit decides, not the policy."""
ABSTAINED = 0.5
"""Share of answers that no reward has judged above which most of a step teaches nothing."""


def standard_error(share: float, count: int) -> float:
    """Of a share of `count` independent answers, at least that of half an answer."""
    return max(math.sqrt(share * (1 - share) / count), 0.5 / count)


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
