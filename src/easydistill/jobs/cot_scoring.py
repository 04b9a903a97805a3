"""Chains of thought judged (paper, 2.1.1)."""

from __future__ import annotations

from typing import Literal

from easydistill.engine.stage import Stage
from easydistill.jobs._synthesis import SynthesisJob, synthesise
from easydistill.synthesis.operators import cot_scoring


class Job(SynthesisJob):
    """Every chain of thought gets scores for verbosity, difficulty and correctness."""

    job_type: Literal["cot_scoring"]
    """Which job this is."""
    synthesis: cot_scoring.Config = cot_scoring.Config()


def plan(job: Job) -> list[Stage]:
    """synthesise."""
    return synthesise(job, "cot_scoring", job.synthesis)
