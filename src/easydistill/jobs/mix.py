"""Mixes rows of several inputs: shares or counts, one row per id, clear of benchmarks, in an order of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from easydistill.config.job import JobConfig
from easydistill.engine.stage import Stage
from easydistill.mixing.config import MixtureConfig
from easydistill.mixing.stage import MixStage


class Job(JobConfig):
    """Rows of several inputs in one set, each with where it is from."""

    job_type: Literal["mix"]
    """Which job this is."""
    mix: MixtureConfig

    @property
    def max_rejected_share(self) -> float:
        return self.mix.max_rejected_share

    def row_paths(self) -> Iterator[tuple[str, str]]:
        yield from self.mix.row_paths("mix")


def plan(job: Job) -> list[Stage]:
    """mix."""
    return [MixStage(job.mix)]
