"""The teacher thinks about each problem (paper, 2.1.1)."""

from __future__ import annotations

from typing import Literal

from easydistill.engine.stage import Stage
from easydistill.jobs._synthesis import SynthesisJob, synthesise
from easydistill.synthesis.operators import cot_generation


class Job(SynthesisJob):
    """A chain of thought for every problem, checked where the answer is known."""

    job_type: Literal["cot_generation"]
    """Which job this is."""
    synthesis: cot_generation.Config = cot_generation.Config()


def plan(job: Job) -> list[Stage]:
    """synthesise."""
    return synthesise(job, "cot_generation", job.synthesis)
