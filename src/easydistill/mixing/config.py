"""The section of the job `mix`."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from easydistill.config.base import NonEmptyStr, PositiveInt, PositiveShare, Section, Seed, Share, Unfit
from easydistill.config.dataset import ColumnsConfig, reading_identity
from easydistill.mixing.allotment import Wanted
from easydistill.task_evaluation.decontamination import BenchmarksConfig

InputName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class InputConfig(Section):
    """One input, and how much of it is taken: a `count`, a `share` of the mix, or by default all of it."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"path", "columns", "image_folder", "fetch_images"})

    path: NonEmptyStr
    """Rows, at a path as `dataset.instruction_path` may be; in a pipeline also `@job/labeled`."""
    count: PositiveInt | Literal["all"] | None = None
    """How many rows are taken. `all` is the default where no share is given; with `total`, such inputs share what the
    others leave, each in proportion to its rows."""
    share: PositiveShare | None = None
    """Share of the mix that comes from this input, such as 0.3."""
    epochs: PositiveInt = 1
    """How often a row may be taken at most. With 1, more rows than there are is an error; with 2, `all` takes each row
    twice. Copies have `-epoch2` … behind their ids."""
    license: NonEmptyStr | None = None
    """The input's licence, as hubs spell it, such as `apache-2.0`; told in the report and on a released card."""
    max_samples: PositiveInt | None = None
    """Read only this many rows, from the start."""
    columns: ColumnsConfig | None = None
    """Names of the columns, if they are not among those that are known."""
    image_folder: NonEmptyStr | None = None
    """Folder that the paths of images in the rows are relative to; by default the folder of the rows' file."""
    fetch_images: bool = False
    """Fetch images that rows name by an http or https address. Without it, such rows are rejected."""

    @model_validator(mode="after")
    def _takes_one_measure(self) -> InputConfig:
        if self.count is not None and self.share is not None:
            raise Unfit("both count and share are given", "keep one of them")
        return self

    @property
    def column_names(self) -> dict[str, str]:
        """The columns that are named, by what they hold."""
        return {} if self.columns is None else self.columns.names()

    def reading_identity(self) -> dict[str, Any]:
        """What decides how its file is read, for fingerprints; nothing at the defaults."""
        return reading_identity(self.column_names, self.image_folder, self.fetch_images)

    def wanted(self) -> Wanted:
        """How much of it is taken."""
        share = None if self.share is None else Fraction(str(self.share))
        return Wanted(self.count if isinstance(self.count, int) else None, share, self.epochs)


class MixtureConfig(Section):
    """Which rows are mixed, and how."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"labeled_path", "max_rejected_share"})

    inputs: Annotated[dict[InputName, InputConfig], Field(min_length=1)]
    """Name → an input. Of rows that are in several inputs, the first input in this order keeps its own."""
    total: PositiveInt | None = None
    """Rows of the mix. By default it follows from the counts; with shares alone, it is the largest for which no input
    runs out."""
    seed: Seed = 42
    """Seed of which rows are taken and of their order, which depend on nothing else but the rows' ids."""
    clashes: Literal["rename", "drop", "refuse"] = "rename"
    """What to do with two different rows that have one id: `rename` writes the input's name before the later one's id,
    `drop` rejects the later one, `refuse` ends the run. Equal rows with equal ids are one row in any case."""
    labelled: bool | None = None
    """true: rows must end with an answer. false: answers are left out, and prompts are mixed. By default rows are taken
    as they are."""
    decontaminate: BenchmarksConfig | None = None
    """Benchmarks whose problems are kept out of the mix, by the search of the operator `decontaminate`."""
    labeled_path: NonEmptyStr | None = None
    """Another file for the mixed rows: `.json`, `.jsonl` or `.parquet`."""
    max_rejected_share: Share = 1.0
    """If more than this share of the rows that were looked at is rejected, the run ends with exit code 3."""

    @model_validator(mode="after")
    def _adds_up(self) -> MixtureConfig:
        shares = self._shares()
        if sum(shares) > 1:
            raise Unfit(f"the shares add up to {float(sum(shares)):g}", "lower them to 1 together")
        if shares and len(shares) == len(self.inputs) and sum(shares) != 1:
            raise Unfit(f"the shares add up to {float(sum(shares)):g}, not to 1", "raise them, or add an input")
        if shares and len(shares) < len(self.inputs) and sum(shares) == 1:
            raise Unfit("the shares leave nothing for the other inputs", "lower the shares, or remove the inputs")
        return self

    @model_validator(mode="after")
    def _makes_the_total(self) -> MixtureConfig:
        shares = self._shares()
        counts = [wanted.count for wanted in self.wanted().values() if wanted.count is not None]
        if self.total is None or len(shares) == len(self.inputs):
            return self
        given = sum(counts) + sum(shares, Fraction()) * self.total
        takes_rest = len(shares) + len(counts) < len(self.inputs)
        # Shares of rows are rounded.
        if not takes_rest and abs(given - self.total) >= (1 if shares else Fraction(1, 2)):
            problem = f"counts and shares make {float(given):g} rows, and total says {self.total}"
            raise Unfit(problem, 'remove total, or let an input fill the rest with "count": "all"')
        if takes_rest and given > self.total:
            raise Unfit(f"counts and shares make more than the {self.total} rows of total", "raise total")
        return self

    def _shares(self) -> list[Fraction]:
        return [wanted.share for wanted in self.wanted().values() if wanted.share is not None]

    def wanted(self) -> dict[str, Wanted]:
        """How much of each input is taken."""
        return {name: config.wanted() for name, config in self.inputs.items()}

    def row_paths(self, where: str) -> Iterator[tuple[str, str]]:
        """(key, path) of everything that is read; `where` is the section's path."""
        for name, config in self.inputs.items():
            yield f"{where}.inputs.{name}.path", config.path
        if self.decontaminate is not None:
            yield from self.decontaminate.row_paths(f"{where}.decontaminate")
