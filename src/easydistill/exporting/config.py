"""The sections of the job `export`: which formats, and how what was written is compared with what it was made of."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator

from easydistill.config.base import NonEmptyStr, NonNegativeInt, PositiveInt, Section, Unfit
from easydistill.config.dataset import ColumnsConfig, DatasetConfig, TemplateVariables
from easydistill.config.models import ModelRef
from easydistill.exporting.formats import FORMATS


def split(spec: str) -> tuple[str, str]:
    """(format, type of number) of a format as written in a config."""
    name, _, number = spec.partition(":")
    return name, number or FORMATS.module(name).NUMBERS[0]


def _known(spec: str) -> str:
    name, colon, number = spec.partition(":")
    if name not in FORMATS.names():
        raise Unfit(f"there is no format {name!r}", f"use one of {', '.join(FORMATS.names())}")
    numbers = FORMATS.module(name).NUMBERS
    if colon and number not in numbers:
        ways = ", ".join(f"{name}:{each}" for each in numbers)
        raise Unfit(f"{name} has no type of number {number!r}", f"use one of {ways}")
    return ":".join(split(spec))


Format = Annotated[NonEmptyStr, AfterValidator(_known)]
"""A format and its type of number, such as `gguf:q8_0`."""


class ExportedModels(Section):
    """The model that is exported."""

    student: ModelRef
    """A student of a run, or any other model: a folder, a hub id, a `.gguf` file, or `@job/student` in a pipeline."""


class ComparedRowsConfig(Section):
    """Rows on which the student and what is exported are compared."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"labeled_path"})

    labeled_path: NonEmptyStr
    """Rows with answers, at a path as `dataset.instruction_path` may be."""
    max_samples: PositiveInt | None = None
    """Use only this many rows, from the start."""
    template: NonEmptyStr | None = None
    """A chat template (a Jinja file) in which the rows are read, for a student without one. It is not exported."""
    template_kwargs: TemplateVariables | None = None
    """Variables of the chat template, such as `{"enable_thinking": false}`. A row's own `chat_template_kwargs` win."""
    columns: ColumnsConfig | None = None
    """Names of the columns, if they are not among those that are known."""

    def as_dataset(self) -> DatasetConfig:
        """The same as a training job has it."""
        return DatasetConfig(**{name: getattr(self, name) for name in type(self).model_fields})


class CalibrationConfig(Section):
    """The rows to which the rounding of `gptq` and `awq` is fitted, and how long it is fitted."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"labeled_path"})

    labeled_path: NonEmptyStr | None = None
    """Rows with answers, such as those that the student learnt from; by default those of the run that made it. Rows on
    which student and export are compared are left out."""
    max_samples: PositiveInt | None = None
    """Read only this many rows, from the start."""
    max_length: PositiveInt = 512
    """Tokens of a block: rows stand one behind the other and are cut to blocks of this length."""
    max_blocks: PositiveInt = 128
    """Use at most this many blocks."""
    iterations: NonNegativeInt = 50
    """Steps for each layer; 200 is auto-round's thorough setting. 0 fits nothing: weights are rounded to the
    nearest number, which takes minutes where learning takes hours on a CPU. Scales are searched then, but for `gptq`
    alone."""
    batch_size: PositiveInt = 8
    """Blocks of a step."""
    template_kwargs: TemplateVariables | None = None
    """Variables of the chat template, such as `{"enable_thinking": false}`. A row's own `chat_template_kwargs` win."""
    columns: ColumnsConfig | None = None
    """Names of the columns, if they are not among those that are known."""

    def as_dataset(self, path: str, template: str | None) -> DatasetConfig:
        """The same as a training job has it.

        Args:
            template: a chat template for a student without one.
        """
        given = {name: getattr(self, name) for name in ("max_samples", "template_kwargs", "columns")}
        return DatasetConfig(labeled_path=path, template=template, **given)


class CheckConfig(Section):
    """How an exported model is compared with the student."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    max_length: PositiveInt = 1024
    """Longest row that is read, in tokens; longer ones are cut."""
    batch_size: PositiveInt = 4
    """Rows compared in one batch."""
