"""The teacher rewrites instructions; a judge refuses those that ask for something else (paper, 2.1.1)."""

from __future__ import annotations

from typing import Literal

from easydistill.engine.stage import Stage
from easydistill.jobs._synthesis import SynthesisJob, synthesise
from easydistill.synthesis.operators import instruction_refinement


class Job(SynthesisJob):
    """Every instruction rewritten, clearer and more specific."""

    job_type: Literal["instruction_refinement"]
    """Which job this is."""
    synthesis: instruction_refinement.Config = instruction_refinement.Config()


def plan(job: Job) -> list[Stage]:
    """synthesise."""
    return synthesise(job, "instruction_refinement", job.synthesis)
