"""What changes over the steps of a training: when rollouts begin, and how long they may be.

Everything depends on the number of the step alone, so a resumed training has nothing to restore.
"""

from __future__ import annotations

from dataclasses import dataclass

from easydistill.methods.on_policy.config import OnPolicyConfig


@dataclass(frozen=True)
class Schedule:
    """Of the steps 0 … total − 1."""

    on_policy: OnPolicyConfig
    total: int

    def is_start(self, step: int) -> bool:
        """Whether a step belongs to the start, which has no rollouts."""
        return step < self.on_policy.kd_steps

    def rollout_share(self, step: int) -> float:
        """λ of a step."""
        return 0.0 if self.is_start(step) else self.on_policy.rollout_share

    def round_from(self, step: int) -> range:
        """The steps whose answers are written together, with `step` as the first of them."""
        ends = min(self.total, step + self.on_policy.steps_per_rollout)
        return range(step, min(ends, self.on_policy.kd_steps) if self.is_start(step) else ends)

    def longest(self, step: int) -> int:
        """The longest answer of a round that begins with `step`, in tokens.

        It grows evenly from `max_new_tokens_start` at the first step with rollouts to `max_new_tokens`, which it has
        from the share `max_new_tokens_growth` of these steps on.
        """
        start, full = self.on_policy.max_new_tokens_start, self.on_policy.max_new_tokens
        if start is None:
            return full
        first = self.on_policy.kd_steps
        grown = (step - first) / ((self.total - first) * self.on_policy.max_new_tokens_growth)
        return start + int((full - start) * min(1.0, max(0.0, grown)))
