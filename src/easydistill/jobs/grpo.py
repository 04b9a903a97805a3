"""Group relative policy optimisation: for System-2 students, whose answers can be checked."""

from __future__ import annotations

from typing import Literal

from easydistill.engine.stage import Stage
from easydistill.jobs._policy import PolicyJob, plan_policy
from easydistill.methods.policy.config import GrpoConfig


class Job(PolicyJob):
    """Several answers to each prompt, each rewarded relative to the others."""

    job_type: Literal["grpo"]
    """Which job this is."""
    policy: GrpoConfig = GrpoConfig()


def plan(job: Job) -> list[Stage]:
    """train, with evaluations on held-out prompts along the way."""
    return plan_policy(job)
