"""Chains of thought chosen by their scores (OmniThought; paper, 2.1.1)."""

from __future__ import annotations

from typing import Literal

from easydistill.engine.stage import Stage
from easydistill.jobs._synthesis import SelectionJob, select
from easydistill.synthesis.operators import cot_selection


class Job(SelectionJob):
    """Chains of thought chosen by verbosity, difficulty and correctness."""

    job_type: Literal["cot_selection"]
    """Which job this is."""
    synthesis: cot_selection.Config


def plan(job: Job) -> list[Stage]:
    """synthesise."""
    return select(job, "cot_selection", job.synthesis)
