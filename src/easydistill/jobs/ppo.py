"""Proximal policy optimisation: for System-1 students, with a reward model and a critic."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from easydistill.config.base import Unfit
from easydistill.engine.stage import Stage
from easydistill.jobs._policy import PolicyJob, plan_policy
from easydistill.methods.policy.config import PpoConfig


class Job(PolicyJob):
    """An answer to each prompt, each token judged by a learned value."""

    job_type: Literal["ppo"]
    """Which job this is."""
    policy: PpoConfig = PpoConfig()

    @model_validator(mode="after")
    def _has_its_critic(self) -> Job:
        if self.policy.critic == "reward_model" and self.rewards.reward_model is None:
            mend = 'name rewards.reward_model, or set policy.critic to "value_head"'
            raise Unfit("policy.critic is the reward model, and there is none", mend)
        return self


def plan(job: Job) -> list[Stage]:
    """train, with held-out measurements on the way."""
    return plan_policy(job)
