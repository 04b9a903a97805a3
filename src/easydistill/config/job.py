"""The top level of every config: the job's type and where the run keeps its files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from easydistill.config.base import NonEmptyStr, Section
from easydistill.config.dataset import PairsConfig, RowsConfig
from easydistill.config.track import Track, or_list


class JobConfig(Section):
    """What every job has. A job's own class, in `jobs/`, adds its sections and a literal `job_type`."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"deterministic", "track"})

    schema_uri: str | None = Field(default=None, alias="$schema")
    """Used by editors only."""
    job_type: str
    """Which job to run."""
    output_dir: NonEmptyStr | None = None
    """Run directory; defaults to `training.output_dir`, else `runs/<name of the config>`."""

    deterministic: bool = False
    """The same files run for run and resume for resume on one kind of GPU, which otherwise rounds otherwise each time;
    slower there. On a CPU they are the same anyway. See docs/determinism.md."""
    track: Track | None = Field(default=None, json_schema_extra=or_list)
    """Where the run's figures are shown besides its own files, such as `["tensorboard"]`.
    Nothing is sent over a network unless a sink's own keys say so. See docs/tracking.md."""

    @property
    def computes_deterministically(self) -> bool:
        """Whether its process is to compute deterministically."""
        return self.deterministic

    @property
    def max_rejected_share(self) -> float:
        """Share of rejected rows above which the run ends with exit code 3."""
        dataset = getattr(self, "dataset", None)
        return dataset.max_rejected_share if isinstance(dataset, RowsConfig | PairsConfig) else 1.0

    def row_paths(self) -> Iterator[tuple[str, str]]:
        """(key, path) of what it reads rows from, other than its `dataset` and its operator's benchmarks."""
        yield from ()

    def run_directory(self, config_name: str) -> Path:
        """Where the run keeps its files; `config_name` is the config's file name without suffix."""
        training: Any = getattr(self, "training", None)
        named = self.output_dir or (training.output_dir if training is not None else None)
        return Path(named) if named else Path("runs") / config_name
