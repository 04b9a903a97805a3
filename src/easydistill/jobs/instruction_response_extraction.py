"""Instruction–response pairs from raw text, with the evidence for each (paper, 2.1.1)."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from easydistill.config.base import Unfit
from easydistill.engine.stage import Stage
from easydistill.jobs._synthesis import SynthesisJob, synthesise
from easydistill.synthesis.config import ChunksConfig
from easydistill.synthesis.operators import instruction_response_extraction
from easydistill.synthesis.sources import TextSource


class Job(SynthesisJob):
    """Pairs from the texts at `dataset.instruction_path`: a txt, md, html or pdf file, a folder, or rows of text."""

    job_type: Literal["instruction_response_extraction"]
    """Which job this is."""
    chunks: ChunksConfig = ChunksConfig()
    synthesis: instruction_response_extraction.Config = instruction_response_extraction.Config()

    @model_validator(mode="after")
    def _has_no_columns(self) -> Job:
        if self.dataset.columns is not None:
            raise Unfit("dataset.columns names the columns of rows, and this job reads texts", "remove it")
        return self


def plan(job: Job) -> list[Stage]:
    """synthesise."""
    source = TextSource(job.dataset, job.chunks)
    return synthesise(job, "instruction_response_extraction", job.synthesis, source)
