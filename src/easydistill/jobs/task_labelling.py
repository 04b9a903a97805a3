"""Instructions labelled by kind of task (paper, 2.1.1)."""

from __future__ import annotations

from typing import Literal

from easydistill.engine.stage import Stage
from easydistill.jobs._synthesis import SynthesisJob, synthesise
from easydistill.synthesis.operators import task_labelling


class Job(SynthesisJob):
    """Every instruction gets one of the task labels."""

    job_type: Literal["task_labelling"]
    """Which job this is."""
    synthesis: task_labelling.Config = task_labelling.Config()


def plan(job: Job) -> list[Stage]:
    """synthesise."""
    return synthesise(job, "task_labelling", job.synthesis)
