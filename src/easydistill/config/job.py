"""The top level of every config: the job's type and where the run keeps its files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, model_validator

from easydistill.config.base import NonEmptyStr, Section, Unfit
from easydistill.config.dataset import PairsConfig, RowsConfig
from easydistill.config.location import checked_location, copy_directory, is_remote
from easydistill.config.storage import StorageConfig
from easydistill.config.track import Track, or_list


def _of_this_machine(path: str) -> str:
    if is_remote(path):
        hint = "name a folder; `easydistill answers export` and `import` take its answers elsewhere"
        raise Unfit(f"{path} is in an object store, which cannot be searched and locked as a folder is", hint)
    return path


class JobConfig(Section):
    """What every job has. A job's own class, in `jobs/`, adds its sections and a literal `job_type`."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"deterministic", "track", "storage", "answers_cache"})

    schema_uri: str | None = Field(default=None, alias="$schema")
    """Used by editors only."""
    job_type: str
    """Which job to run."""
    output_dir: Annotated[NonEmptyStr, AfterValidator(checked_location)] | None = None
    """Run directory; defaults to `training.output_dir`, else `runs/<name of the config>`. A URL such as
    `s3://bucket/runs/kd` keeps the run in an object store; see docs/remote.md."""

    deterministic: bool = False
    """Make two runs of one config write the same files, to the last bit, on one kind of GPU, also if one was
    interrupted. Without it the last digits of sums differ there. Slower on a GPU; on a CPU runs are the same anyway.
    See docs/determinism.md."""
    track: Track | None = Field(default=None, json_schema_extra=or_list)
    """Where the run's figures are shown besides its own files, such as `["tensorboard"]`.
    Nothing is sent over a network unless a sink's own keys say so. See docs/tracking.md."""
    answers_cache: Annotated[NonEmptyStr, AfterValidator(_of_this_machine)] | None = None
    """A folder in which teachers' answers and signals are kept for all runs that name it: what is in it is not asked,
    paid for or scored again. See docs/answers_cache.md."""
    storage: StorageConfig = StorageConfig()
    """How a run is kept in an object store, if `output_dir` is a URL."""

    @model_validator(mode="after")
    def _storage_has_a_store(self) -> JobConfig:
        if self.storage != type(self.storage)() and self.remote is None:
            raise Unfit(
                "storage is set, but output_dir is not in an object store",
                "set output_dir to a URL such as s3://bucket/runs/kd, or remove storage",
            )
        return self

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

    @property
    def remote(self) -> str | None:
        """The place in an object store where the run is kept, if it is."""
        named = self._named_directory
        return checked_location(named) if named is not None and is_remote(named) else None

    @property
    def _named_directory(self) -> str | None:
        training: Any = getattr(self, "training", None)
        return self.output_dir or (training.output_dir if training is not None else None)

    def run_directory(self, config_name: str) -> Path:
        """Where this machine keeps the run's files; `config_name` is the config's file name without suffix."""
        if (remote := self.remote) is not None:
            own = self.storage.working_directory
            return Path(own) if own is not None else copy_directory(remote, "runs")
        named = self._named_directory
        return Path(named) if named else Path("runs") / config_name
