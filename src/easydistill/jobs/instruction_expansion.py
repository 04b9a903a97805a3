"""The teacher writes new instructions in the manner of the seeds (paper, 2.1.1)."""

from __future__ import annotations

from typing import Literal

from easydistill.engine.stage import Stage
from easydistill.jobs._synthesis import SynthesisJob, synthesise
from easydistill.synthesis.operators import instruction_expansion


class Job(SynthesisJob):
    """New instructions like those of `dataset.instruction_path`."""

    job_type: Literal["instruction_expansion"]
    """Which job this is."""
    synthesis: instruction_expansion.Config = instruction_expansion.Config()


def plan(job: Job) -> list[Stage]:
    """synthesise."""
    return synthesise(job, "instruction_expansion", job.synthesis)
