"""Writes rows as a dataset that `datasets.load_dataset` reads: sharded Parquet, a card, checksums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from easydistill.config.job import JobConfig
from easydistill.engine.stage import Stage
from easydistill.releasing.config import ReleaseConfig, ReleasedRowsConfig
from easydistill.releasing.push import PushStage
from easydistill.releasing.stage import ReleaseStage


class Job(JobConfig):
    """The rows of `dataset.labeled_path` as a dataset folder, with card and checksums."""

    job_type: Literal["release"]
    """Which job this is."""
    dataset: ReleasedRowsConfig
    release: ReleaseConfig = ReleaseConfig()

    def row_paths(self) -> Iterator[tuple[str, str]]:
        yield from self.release.row_paths("release")

    @property
    def title(self) -> str:
        """What the card is called."""
        own = self.release.push or self.output_dir or "dataset"
        return self.release.name or own.rstrip("/").rpartition("/")[2]


def plan(job: Job) -> list[Stage]:
    """release → push, where that is asked for."""
    stages: list[Stage] = [ReleaseStage(job.dataset, job.release, job.title)]
    if job.release.push is not None:
        stages.append(PushStage(job.release.push, private=job.release.private))
    return stages
