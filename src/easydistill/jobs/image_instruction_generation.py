"""Instructions about images that have none: a folder of images, or rows with images alone."""

from __future__ import annotations

from typing import Literal

from easydistill.engine.stage import Stage
from easydistill.jobs._synthesis import SynthesisJob, synthesise
from easydistill.synthesis.image_source import ImageSource
from easydistill.synthesis.operators import image_instruction_generation


class Job(SynthesisJob):
    """Instructions about the images at `dataset.instruction_path`: a folder, an image, or rows with images alone."""

    job_type: Literal["image_instruction_generation"]
    """Which job this is."""
    synthesis: image_instruction_generation.Config = image_instruction_generation.Config()


def plan(job: Job) -> list[Stage]:
    """synthesise."""
    return synthesise(job, "image_instruction_generation", job.synthesis, ImageSource(job.dataset))
