"""Files of rows of any shape → Python values, one by one: JSON, JSON Lines, CSV, Parquet and Arrow, compressed or not,
in one file, a folder, a glob, a folder of `save_to_disk`, or a data set of the Hugging Face hub (`places.py`).

A line that is not JSON becomes a `BrokenRow`, so that it counts as a rejected row and the others are used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from easydistill.data.plain import without_image_bytes
from easydistill.data.records import IdAssigner, Rejection
from easydistill.data.row_files.broken import MALFORMED, BrokenRow, MalformedRow
from easydistill.data.row_files.hub_place import HubPlace
from easydistill.data.row_files.opening import open_bytes, reading
from easydistill.data.row_files.places import FORMATS, Format, format_of, place_of
from easydistill.errors import DataError

__all__ = [
    "MALFORMED",
    "SUFFIXES",
    "BrokenRow",
    "MalformedRow",
    "format_of",
    "has_lone_surrogates",
    "own_id",
    "parse_rows",
    "plain_value",
    "rows_of",
]

Parsed = TypeVar("Parsed")

SUFFIXES = FORMATS
"""Suffixes of readable files; those of text may be followed by one of a compression."""


def rows_of(where: str | Path) -> Iterator[Any]:
    """The rows of a file, or of all that a folder, a glob or a hub's id names, in order.

    Raises:
        DataError: it cannot be read.
        MissingExtra: it is a hub's data set, and `datasets` is not installed.
    """
    return (row for _, _, row in _located(where))


def _located(where: str | Path) -> Iterator[tuple[str, int, Any]]:
    """(source, number in it from 1, row) for each row."""
    place = place_of(where)
    if isinstance(place, HubPlace):
        from easydistill.data.row_files.hub import hub_rows

        for number, row in enumerate(hub_rows(place), start=1):
            yield str(place), number, row
        return
    for path in place.files:
        for number, row in enumerate(file_rows(path), start=1):
            yield str(path), number, row


def file_rows(path: Path, named: Format | None = None) -> Iterator[Any]:
    """The rows of one file.

    Args:
        named: its format, if its name does not tell.

    Raises:
        DataError: it cannot be read.
    """
    found = named or format_of(path)
    if found is None:
        raise DataError(f"{path}: a data file ends in {', '.join(SUFFIXES)}")

    def opened() -> Any:
        return open_bytes(path, found.compression)

    with reading(path):
        if found.kind == ".jsonl":
            from easydistill.data.row_files.json_text import jsonl_rows

            yield from jsonl_rows(opened)
        elif found.kind == ".json":
            from easydistill.data.row_files.json_text import json_rows

            yield from json_rows(path, opened)
        elif found.kind == ".csv":
            from easydistill.data.row_files.csv_text import csv_rows

            yield from csv_rows(path, opened, tabs=found.suffix == ".tsv")
        else:
            from easydistill.data.row_files.arrow import arrow_rows, parquet_rows

            yield from parquet_rows(path) if found.kind == ".parquet" else arrow_rows(path)


def own_id(row: Any) -> str | None:
    """The id that a row brings, if it is usable."""
    own = row.get("id") if isinstance(row, dict) else None
    if not isinstance(own, str | int) or isinstance(own, bool) or has_lone_surrogates(str(own)):
        return None
    return str(own) or None


def has_lone_surrogates(text: str) -> bool:
    """Whether a text contains halves of surrogate pairs, which no file, tokenizer or server accepts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # UTF-8 has every other character.
        return True
    return False


def plain_value(row: Any) -> Any:
    """A row in a form that JSON can store, for rejected rows: without the bytes of images."""
    row = without_image_bytes(row)
    try:
        json.dumps(row, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return str(row)
    return row


def parse_rows(
    where: str | Path, parse: Callable[[Any, str], Parsed], ids: IdAssigner, limit: int | None
) -> Iterator[tuple[int, Any, Parsed | Rejection]]:
    """(number from 1, row, result of `parse` or the rejection if it raises `MalformedRow`), row by row.

    `parse` is given the row and the file, or the hub's data set, that it is from. The number counts through all files;
    a rejection names the file and the row's number in it.

    Raises:
        DataError: a file cannot be read.
    """
    for number, (source, own, row) in enumerate(_located(where), start=1):
        if limit is not None and number > limit:
            return
        try:
            yield number, row, parse(row, source)
        except MalformedRow as problem:
            identity = ids.assign([number, str(row)[:1000]])
            detail = f"{source}, row {own}: {problem}"
            yield number, row, Rejection(identity, "read", problem.reason, detail, 1, plain_value(row))
