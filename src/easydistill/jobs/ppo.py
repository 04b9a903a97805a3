"""Proximal policy optimisation: for System-1 students, with a reward model and a critic."""

from __future__ import annotations

from typing import Literal

from easydistill.config.policy import PpoConfig
from easydistill.engine.stage import Stage
from easydistill.jobs._policy import PolicyJob, plan_policy


class Job(PolicyJob):
    """An answer to each prompt, each token judged by a learned value."""

    job_type: Literal["ppo"]
    """Which job this is."""
    policy: PpoConfig = PpoConfig()


def plan(job: Job) -> list[Stage]:
    """train, with held-out measurements on the way."""
    return plan_policy(job)
