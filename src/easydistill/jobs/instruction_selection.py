"""Instructions chosen by their scores."""

from __future__ import annotations

from typing import Literal

from easydistill.engine.stage import Stage
from easydistill.jobs._synthesis import SelectionJob, select
from easydistill.synthesis.operators import instruction_selection


class Job(SelectionJob):
    """Instructions chosen by their scores."""

    job_type: Literal["instruction_selection"]
    """Which job this is."""
    synthesis: instruction_selection.Config


def plan(job: Job) -> list[Stage]:
    """synthesise."""
    return select(job, "instruction_selection", job.synthesis)
