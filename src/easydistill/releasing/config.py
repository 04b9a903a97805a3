"""The sections of the job `release`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from easydistill.config.base import NonEmptyStr, PositiveFloat, Section, Seed, Unfit, share_or_count
from easydistill.config.dataset import RowsConfig
from easydistill.config.models import ModelRef
from easydistill.task_evaluation.decontamination import BenchmarksConfig

Heldout = Annotated[PositiveFloat, AfterValidator(share_or_count)]
"""A share of the rows (below 1), or a number of them."""


class ReleasedRowsConfig(RowsConfig):
    """The rows that are released."""

    labeled_path: NonEmptyStr
    """Rows, at a path as `dataset.instruction_path` may be; in a pipeline also `@job/labeled`."""

    @model_validator(mode="after")
    def _has_one_path(self) -> ReleasedRowsConfig:
        if self.instruction_path is not None:
            raise Unfit("instruction_path is not read here", "name the rows in labeled_path")
        return self


class ReleaseConfig(Section):
    """What the dataset is called, and how it is written."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"push", "private"})

    row_schema: Literal["chat", "instruction", "omnithought"] = Field(default="chat", alias="schema")
    """Columns: `chat` has `messages`, and holds every row; `instruction` has `instruction`, `input` and `output`, as
    DistilQwen_100K; `omnithought` has `question` and its `reasoning` chains with their scores, as OmniThought."""
    name: NonEmptyStr | None = None
    """Title of the card; by default the repository's or the run's name."""
    description: NonEmptyStr | None = None
    """Text of the card, below its title."""
    license: NonEmptyStr | None = None
    """The dataset's licence, as hubs spell it, such as `apache-2.0`. Without one the card says that none was given."""
    teachers: list[NonEmptyStr] = []  # noqa: RUF012 (pydantic copies it)
    """Models that wrote the answers, where neither the rows nor the runs say so."""
    judge: NonEmptyStr | None = None
    """With `omnithought`: the model that gave the scores, where the rows do not say so."""
    splits: dict[Literal["validation", "test"], Heldout] = {}  # noqa: RUF012 (pydantic copies it)
    """Splits beside `train`: a share below 1, or a number of rows. Rows with one prompt stay together."""
    seed: Seed = 42
    """Seed of which rows are in which split."""
    shard_mb: PositiveFloat = 256
    """Size in megabytes at which a Parquet file ends and the next one begins."""
    images: Literal["refuse", "bytes"] = "refuse"
    """`bytes` writes images into the Parquet files; without it, rows with images end the run."""
    tokenizer: ModelRef | None = None
    """A model whose tokenizer counts tokens for the card; without it, lengths are told in characters."""
    contamination: BenchmarksConfig | None = None
    """Benchmarks whose problems are looked for in the rows and counted on the card. Nothing is dropped here: the jobs
    `mix` and `decontaminate` drop."""
    runs: list[NonEmptyStr] = []  # noqa: RUF012 (pydantic copies it)
    """Further run directories whose manifests say how the rows were made. Those of the run or pipeline in which the
    rows lie are read in any case."""
    push: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    """Upload the folder to this dataset repository of the Hugging Face hub, with the token in `HF_TOKEN`. By default
    nothing leaves this machine."""
    private: bool = True
    """Whether a repository that the upload makes is private."""

    @model_validator(mode="after")
    def _fits(self) -> ReleaseConfig:
        if self.judge is not None and self.row_schema != "omnithought":
            raise Unfit("judge is not written", 'remove it, or set "schema": "omnithought"')
        if self.images == "bytes" and self.row_schema != "chat":
            raise Unfit(f"the schema {self.row_schema} holds no images", 'set "schema": "chat"')
        if sum(part for part in self.splits.values() if part < 1) >= 1:
            raise Unfit("the splits leave nothing for train", "lower their shares")
        return self

    def row_paths(self, where: str) -> Iterator[tuple[str, str]]:
        """(key, path) of further rows that are read; `where` is the section's path."""
        if self.contamination is not None:
            yield from self.contamination.row_paths(f"{where}.contamination")

    def writing_identity(self) -> dict[str, Any]:
        """What decides the files, for the fingerprint."""
        found = self.identity()
        found.pop("runs", None)
        return found
