"""Warning signs in the logged figures of training by rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ENTROPY_LEFT = 0.1
"""Share of the first step's entropy below which the policy has collapsed."""
ZERO_VARIANCE = 0.8
"""Share of groups with equal rewards above which most of a step teaches nothing."""
CUT_OFF = 0.5
"""Share of truncated answers above which the token limit ends answers, not the policy."""
ABSTAINED = 0.5
"""Share of answers without any reward above which most of a step teaches nothing."""


def standard_error(share: float, count: int) -> float:
    """Standard error of a share of `count` independent answers; at least half an answer's share."""
    return max(math.sqrt(share * (1 - share) / count), 0.5 / count)


@dataclass
class Alarms:
    """Signs that training goes wrong, each reported once. Takes the figures that go into `metrics.jsonl`."""

    raised: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Alarm → its step, and its sentence under `told`."""
    _first_entropy: float | None = None
    _heldout: list[tuple[int, float, float, int]] = field(default_factory=list)

    def step(self, step: int, figures: Mapping[str, Any]) -> list[str]:
        """Figures of a training step; returns new alarms as sentences."""
        found: list[str] = []
        # 0 cannot fall, and is no baseline: the step's answers were all alike, or the policy is certain from the start.
        entropy = figures.get("entropy")
        if entropy:
            if self._first_entropy is None:
                self._first_entropy = entropy
            elif entropy < ENTROPY_LEFT * self._first_entropy:
                sentence = f"entropy fell from {self._first_entropy:.3f} to {entropy:.3f} nats: exploration has ended"
                found += self._raise("entropy_collapse", step, sentence)
        if (share := figures.get("zero_variance_groups") or 0) > ZERO_VARIANCE:
            sentence = f"in {share:.0%} of the groups all answers have the same reward: nothing is learned from them"
            found += self._raise("zero_variance", step, sentence)
        if (share := 1 - figures.get("ended", 1)) > CUT_OFF:
            found += self._raise("cut_off", step, f"{share:.0%} of the answers are cut off at max_new_tokens")
        if (share := figures.get("reward/abstained") or 0) > ABSTAINED:
            sentence = f"{share:.0%} of the answers were judged by no reward: nothing is learned from them"
            found += self._raise("abstained", step, sentence)
        return found

    def state(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {"raised": self.raised, "first_entropy": self._first_entropy}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        self.raised, self._first_entropy = dict(state["raised"]), state["first_entropy"]

    def heldout(self, step: int, figures: Mapping[str, Any]) -> list[str]:
        """Figures of held-out prompts; returns new alarms as sentences."""
        if "verified_accuracy" not in figures or "reward" not in figures:
            return []
        now = (step, float(figures["reward"]), float(figures["verified_accuracy"]), int(figures["verified"]))
        self._heldout.append(now)
        best = max(self._heldout, key=lambda entry: entry[2])
        # Two standard errors of the difference; conservative, because both measure the same prompts.
        room = 2 * math.hypot(standard_error(best[2], best[3]), standard_error(now[2], now[3]))
        if now[1] > best[1] and now[2] < best[2] - room:
            sentence = (
                f"since step {best[0]} the held-out reward rose from {best[1]:.3f} to {now[1]:.3f}, "
                f"and the share of right answers fell from {best[2]:.1%} to {now[2]:.1%}: the reward is being gamed"
            )
            return self._raise("reward_hacking", step, sentence)
        return []

    def _raise(self, name: str, step: int, sentence: str) -> list[str]:
        if name in self.raised:
            return []
        self.raised[name] = {"step": step, "told": sentence}
        return [sentence]
