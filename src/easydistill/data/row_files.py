"""Files of rows, whatever shape the rows have: JSON arrays, JSON Lines, Parquet → Python values, one by one.

A line that is no JSON comes as a `BrokenRow`, so that it is counted as a rejected row and the others are used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from easydistill.data.records import IdGiver, Rejection
from easydistill.errors import DataError

Parsed = TypeVar("Parsed")

MALFORMED = "malformed_row"
SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")
"""Of files that can be read."""


class Malformed(Exception):
    """Why a row has none of the known shapes."""


def rows_of(path: Path) -> Iterator[Any]:
    """The rows of a file, in order.

    Raises:
        DataError: it cannot be read.
    """
    suffix = path.suffix.lower()
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        raise DataError(f"{path}: this is not a file")
    if suffix == ".parquet":
        yield from _parquet_rows(path)
    elif suffix in {".jsonl", ".ndjson"}:
        yield from _jsonl_rows(path)
    elif suffix == ".json":
        yield from _json_rows(path)
    else:
        raise DataError(f"{path}: a data file ends in .json, .jsonl or .parquet")


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from None


def _jsonl_rows(path: Path) -> Iterator[Any]:
    with path.open("rb") as handle:
        for line in handle:
            if not line.strip():
                continue
            try:
                yield json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                yield BrokenRow(f"not valid JSON: {error}", line.decode("utf-8", "replace")[:2000])


class BrokenRow(dict[str, Any]):
    """A line that is not JSON at all, on its way to become a rejected row."""

    def __init__(self, problem: str, text: str) -> None:
        super().__init__(text=text)
        self.problem = problem


def _json_rows(path: Path) -> Iterator[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: the file is not UTF-8 text") from None
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        first = text.lstrip().split("\n", 1)[0]
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            raise DataError(f"{path}: not valid JSON: {error}") from None
        # JSON Lines under the name .json, as is common.
        yield from _jsonl_rows(path)
        return
    if isinstance(value, dict):
        for key in ("data", "rows", "examples", "instances"):
            if isinstance(value.get(key), list):
                value = value[key]
                break
        else:
            value = [value]
    if not isinstance(value, list):
        raise DataError(f"{path}: an array of rows is needed, not {type(value).__name__}")
    yield from value


def own_id(row: Any) -> str | None:
    """The id that a row brings, where it can serve as one."""
    own = row.get("id") if isinstance(row, dict) else None
    if not isinstance(own, str | int) or isinstance(own, bool) or half_characters(str(own)):
        return None
    return str(own) or None


def half_characters(text: str) -> bool:
    """Whether a text holds halves of surrogate pairs, which no file, tokenizer or server takes."""
    return any("\ud800" <= char <= "\udfff" for char in text)


def plain_value(row: Any) -> Any:
    """A row as JSON can hold it: for rejected rows."""
    try:
        json.dumps(row, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return str(row)
    return row


def parse_rows(
    path: Path, parse: Callable[[Any], Parsed], ids: IdGiver, limit: int | None
) -> Iterator[tuple[int, Any, Parsed | Rejection]]:
    """(number from 1, row, what `parse` makes of it, or the rejection where it raises `Malformed`), row by row.

    Raises:
        DataError: the file cannot be read.
    """
    for number, row in enumerate(rows_of(path), start=1):
        if limit is not None and number > limit:
            return
        try:
            yield number, row, parse(row)
        except Malformed as problem:
            identity = ids.give([number, str(row)[:1000]])
            detail = f"{path}, row {number}: {problem}"
            yield number, row, Rejection(identity, "read", MALFORMED, detail, 1, plain_value(row))
