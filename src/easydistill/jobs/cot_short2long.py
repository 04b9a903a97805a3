"""Short chains of thought made long (paper, 2.1.1)."""

from __future__ import annotations

from typing import Literal

from easydistill.engine.stage import Stage
from easydistill.jobs._synthesis import SynthesisJob, synthesise
from easydistill.synthesis.operators import cot_extension


class Job(SynthesisJob):
    """Every chain of thought made longer, with the same answer."""

    job_type: Literal["cot_short2long"]
    """Which job this is."""
    synthesis: cot_extension.Config = cot_extension.Config()


def plan(job: Job) -> list[Stage]:
    """synthesise."""
    return synthesise(job, "cot_extension", job.synthesis)
