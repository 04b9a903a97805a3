"""Proximal policy optimisation: for System-1 students, with a reward model and a critic."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from easydistill.config.base import Unfit
from easydistill.engine.stage import Stage
from easydistill.jobs._policy import PolicyJob, plan_policy
from easydistill.methods.policy.config import PpoConfig


class Job(PolicyJob):
    """One answer to each prompt, with a learned value of each token."""

    job_type: Literal["ppo"]
    """Which job this is."""
    policy: PpoConfig = PpoConfig()

    @model_validator(mode="after")
    def _has_its_critic(self) -> Job:
        if self.policy.critic == "reward_model" and self.rewards.reward_model is None:
            hint = 'set rewards.reward_model, or policy.critic to "value_head"'
            raise Unfit("policy.critic is the reward model, but there is none", hint)
        return self


def plan(job: Job) -> list[Stage]:
    """train, with evaluations on held-out prompts along the way."""
    return plan_policy(job)
