"""The `rewards` section: what the student's answers are worth to PPO and GRPO.

Its keys are the names of rewards, each with its own keys; those stand in the reward's own file. The section's class,
with a key for every reward that is registered, is made by `easydistill.rewards.rewards_section`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Field, model_validator

from easydistill.config.base import NonNegativeFloat, Section, Unfit

LARGEST = 1e9
"""Rewards and weights beyond it would leave what sums and float32 can hold."""
AnyFloat = Annotated[float, Field(strict=True, ge=-LARGEST, le=LARGEST)]
"""Any number that a sum of rewards can hold; true and false are none."""


class RewardConfig(Section):
    """What every reward has."""

    needs_judge: ClassVar[bool] = False
    """Whether a model that judges must be there."""

    weight: Annotated[NonNegativeFloat, Field(le=LARGEST)] = 1.0
    """Its factor in the sum. With 0 it is computed and logged, and counts for nothing."""


class RewardsConfig(Section):
    """Rewards by name, each with its own keys; a rollout's reward is their weighted sum."""

    def chosen(self) -> dict[str, RewardConfig]:
        """The rewards that are wanted, by name."""
        return {name: config for name, config in self if isinstance(config, RewardConfig)}

    def identity(self) -> dict[str, Any]:
        """Each reward's own identity. What is in the files and models that they name is not part of it."""
        return super().identity() | {name: config.identity() for name, config in self.chosen().items()}

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
