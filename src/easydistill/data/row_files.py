"""Files of rows of any shape: JSON arrays, JSON Lines, Parquet → Python values, one by one.

A line that is not JSON becomes a `BrokenRow`, so that it counts as a rejected row and the others are used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from easydistill.data.records import IdAssigner, Rejection
from easydistill.errors import DataError

Parsed = TypeVar("Parsed")

MALFORMED = "malformed_row"
SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")
"""Suffixes of readable files."""


class MalformedRow(Exception):
    """Says why a row has none of the known shapes."""


def rows_of(path: Path) -> Iterator[Any]:
    """The rows of a file, in order.

    Raises:
        DataError: it cannot be read.
    """
    suffix = path.suffix.lower()
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        raise DataError(f"{path}: not a file")
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
    """A line that is not JSON; it will become a rejected row."""

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
        # JSON Lines named .json, which is common.
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
    """A row in a form that JSON can store, for rejected rows."""
    try:
        json.dumps(row, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return str(row)
    return row


def parse_rows(
    path: Path, parse: Callable[[Any], Parsed], ids: IdAssigner, limit: int | None
) -> Iterator[tuple[int, Any, Parsed | Rejection]]:
    """(number from 1, row, result of `parse` or the rejection if it raises `MalformedRow`), row by row.

    Raises:
        DataError: the file cannot be read.
    """
    for number, row in enumerate(rows_of(path), start=1):
        if limit is not None and number > limit:
            return
        try:
            yield number, row, parse(row)
        except MalformedRow as problem:
            identity = ids.assign([number, str(row)[:1000]])
            detail = f"{path}, row {number}: {problem}"
            yield number, row, Rejection(identity, "read", MALFORMED, detail, 1, plain_value(row))
