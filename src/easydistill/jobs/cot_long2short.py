"""Long chains of thought made short (paper, 2.1.1)."""

from __future__ import annotations

from typing import Literal

from easydistill.engine.stage import Stage
from easydistill.jobs._synthesis import SynthesisJob, synthesise
from easydistill.synthesis.operators import cot_simplification


class Job(SynthesisJob):
    """Every chain of thought made shorter, with the same answer."""

    job_type: Literal["cot_long2short"]
    """Which job this is."""
    synthesis: cot_simplification.Config = cot_simplification.Config()


def plan(job: Job) -> list[Stage]:
    """synthesise."""
    return synthesise(job, "cot_simplification", job.synthesis)
