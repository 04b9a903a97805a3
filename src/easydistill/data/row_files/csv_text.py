"""Rows of CSV and TSV with a header. A cell is a text as it stands: `007`, `1.50` and dates stay what they are. Only
columns that are numbers or flags by name (`beta`, `chosen_score`, `label` …) hold numbers, and true or false."""

from __future__ import annotations

import csv
import io
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easydistill.data.row_files.broken import BrokenRow
from easydistill.data.row_files.json_text import Open
from easydistill.errors import DataError

_VALUES = re.compile(
    r"(^|_)(beta|margin|scores?|ratings?|rates?|rewards?|weight|label|kto_tag|correct|correctness|rv|cd"
    r"|informativeness|helpfulness|generali[sz]ation|loss|train)(_|$)",
    re.IGNORECASE,
)
"""Names of columns of numbers or flags."""
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?\s*", re.ASCII)
_FLAGS = {"true": True, "false": False}


def csv_rows(path: Path, open_file: Open, *, tabs: bool) -> Iterator[Any]:
    """A dict for each line; empty cells are left out. A line with other cells than the header is a `BrokenRow`.

    Args:
        tabs: whether cells are separated by tabs; if not, by commas, or semicolons where the header has more of them.

    Raises:
        DataError: quotes that are not closed, or a header that names a column twice.
    """
    # Answers are longer than the 131,072 characters that the module allows by default. The limit is the process's.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with open_file() as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        first = _first_line(text)
        lines = csv.reader(_after(first, text), delimiter="\t" if tabs else _delimiter(first), strict=True)
        try:
            yield from _rows(path, lines)
        except csv.Error as error:
            raise DataError(f"{path}: not valid CSV: {error}, line {lines.line_num}") from None


def _first_line(text: io.TextIOWrapper) -> str:
    for line in text:
        if line.strip():
            return line
    return ""


def _after(first: str, text: io.TextIOWrapper) -> Iterator[str]:
    yield first
    yield from text


def _delimiter(header: str) -> str:
    """The character that separates cells, of which a header has the most outside quotes."""
    outside = "".join(header.split('"')[::2])
    return max((",", ";", "\t"), key=outside.count)


def _rows(path: Path, lines: Iterator[list[str]]) -> Iterator[Any]:
    header = _header(path, next(lines, []))
    values = {name for name in header if _VALUES.search(name)}
    for cells in filter(any, lines):
        if len(cells) != len(header):
            yield BrokenRow(f"it has {len(cells)} cells, the header {len(header)}", ",".join(cells)[:2000])
            continue
        # A column without a name is the index that pandas writes.
        yield {
            name: _value(cell) if name in values else cell
            for name, cell in zip(header, cells, strict=True)
            if name and cell
        }


def _header(path: Path, cells: list[str]) -> list[str]:
    header = [name.strip() for name in cells]
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: the header names {twice!r} twice\n    → give each column a name of its own")
    return header


def _value(cell: str) -> Any:
    """A number or a flag; a text if it is neither."""
    flag = _FLAGS.get(cell.strip().lower())
    if flag is not None:
        return flag
    if _NUMBER.fullmatch(cell) is None or len(cell) > 40:
        return cell
    number = int(cell) if cell.strip().lstrip("+-").isdecimal() else float(cell)
    return number if math.isfinite(number) else cell
