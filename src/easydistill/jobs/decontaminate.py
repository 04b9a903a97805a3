"""Rows dropped that share text with benchmark files."""

from __future__ import annotations

from typing import Literal

from easydistill.engine.stage import Stage
from easydistill.jobs._synthesis import SelectionJob, select
from easydistill.synthesis.operators import decontaminate


class Job(SelectionJob):
    """Rows that share nothing with benchmarks."""

    job_type: Literal["decontaminate"]
    """Which job this is."""
    synthesis: decontaminate.Config


def plan(job: Job) -> list[Stage]:
    """synthesise."""
    return select(job, "decontaminate", job.synthesis)
