"""The `rewards` section: what the student's answers are worth to PPO and GRPO.

Its keys are the names of rewards, each with its own keys; those stand in the reward's own file. The section's class,
with a key for every reward that is registered, is made by `easydistill.rewards.rewards_section`.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import model_validator

from easydistill.config.base import Unfit
from easydistill.config.extensions import NamedSections


class RewardsConfig(NamedSections):
    """Rewards by name, each with its own keys; a rollout's reward is their weighted sum."""

    @property
    def needs_judge(self) -> bool:
        """Whether one of them asks a judge."""
        return any(config.needs_judge for config in self.chosen().values())

    @model_validator(mode="after")
    def _counts_something(self: RewardsT) -> RewardsT:
        chosen = self.chosen()
        known = ", ".join(type(self).model_fields)
        if not chosen:
            raise Unfit("there is no reward", f'name at least one of {known}, such as {{"verify": {{}}}}')
        if not any(config.weight for config in chosen.values()):
            raise Unfit("every reward has weight 0: all answers are worth the same", "give one of them a weight")
        return self


RewardsT = TypeVar("RewardsT", bound=RewardsConfig)
