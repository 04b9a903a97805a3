"""Rows balanced over tasks (paper, 2.1.1)."""

from __future__ import annotations

from typing import Literal

from easydistill.engine.stage import Stage
from easydistill.jobs._synthesis import SelectionJob, select
from easydistill.synthesis.operators import task_balancing


class Job(SelectionJob):
    """As many rows of every task as the target shares ask for."""

    job_type: Literal["task_balancing"]
    """Which job this is."""
    synthesis: task_balancing.Config


def plan(job: Job) -> list[Stage]:
    """synthesise."""
    return select(job, "task_balancing", job.synthesis)
