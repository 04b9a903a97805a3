"""Instructions judged (paper, 2.1.1)."""

from __future__ import annotations

from typing import Literal

from easydistill.engine.stage import Stage
from easydistill.jobs._synthesis import SynthesisJob, synthesise
from easydistill.synthesis.operators import instruction_scoring


class Job(SynthesisJob):
    """Every instruction gets scores for what there is to learn from it."""

    job_type: Literal["instruction_scoring"]
    """Which job this is."""
    synthesis: instruction_scoring.Config = instruction_scoring.Config()


def plan(job: Job) -> list[Stage]:
    """synthesise."""
    return synthesise(job, "instruction_scoring", job.synthesis)
