"""The sections of the job `export`: which formats, and how what was written is compared with what it was made of."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator

from easydistill.config.base import NonEmptyStr, PositiveInt, Section, Unfit
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


class CheckConfig(Section):
    """How an exported model is compared with the student."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    max_length: PositiveInt = 1024
    """Longest row that is read, in tokens; longer ones are cut."""
    batch_size: PositiveInt = 4
    """Rows compared in one batch."""
