"""Group relative policy optimisation: for System-2 students, whose answers can be checked."""

from __future__ import annotations

from typing import Literal

from easydistill.engine.stage import Stage
from easydistill.jobs._policy import PolicyJob, plan_policy
from easydistill.methods.policy.config import GrpoConfig


class Job(PolicyJob):
    """Several answers to each prompt, each judged against the others."""

    job_type: Literal["grpo"]
    """Which job this is."""
    policy: GrpoConfig = GrpoConfig()


def plan(job: Job) -> list[Stage]:
    """train, with held-out measurements on the way."""
    return plan_policy(job)
