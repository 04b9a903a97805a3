"""Equal, nearly equal and too similar rows dropped."""

from __future__ import annotations

from typing import Literal

from easydistill.engine.stage import Stage
from easydistill.jobs._synthesis import SelectionJob, select
from easydistill.synthesis.operators import deduplicate


class Job(SelectionJob):
    """Rows without their near-equals."""

    job_type: Literal["deduplicate"]
    """Which job this is."""
    synthesis: deduplicate.Config = deduplicate.Config()


def plan(job: Job) -> list[Stage]:
    """synthesise."""
    return select(job, "deduplicate", job.synthesis)
