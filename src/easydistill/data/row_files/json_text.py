"""Rows of JSON and JSON Lines. Neither is held in memory whole, but for an object that wraps its rows."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from easydistill.data.row_files.broken import BrokenRow
from easydistill.errors import DataError

Open = Callable[[], IO[bytes]]
_CHUNK = 1 << 18
"""Characters read at once."""
_WRAPPERS = ("data", "rows", "examples", "instances")
_SPACE = " \t\n\r"


def jsonl_rows(open_file: Open) -> Iterator[Any]:
    """The value of each line; a line that is not JSON is a `BrokenRow`."""
    with open_file() as handle:
        for line in handle:
            if not line.strip():
                continue
            try:
                # A line that was cut off ends where the file's line does: not in a newline inside its text.
                yield json.loads(line.decode("utf-8-sig").rstrip("\r\n"))
            except (ValueError, RecursionError) as error:
                # The position's line is always 1: it is the row's.
                problem = str(error)
                if isinstance(error, json.JSONDecodeError):
                    problem = f"{error.msg.removesuffix(' at')} at column {error.colno}"
                yield BrokenRow(f"not valid JSON: {problem}", line.decode("utf-8", "replace")[:2000])


def json_rows(path: Path, open_file: Open) -> Iterator[Any]:
    """The rows of a JSON file: an array, an object that wraps one, one row, or JSON Lines in a file of this name.

    Raises:
        DataError: it is no JSON, or holds no rows.
    """
    with open_file() as raw:
        scanner = _Scanner(path, io.TextIOWrapper(raw, encoding="utf-8-sig"))
        begins = scanner.next_char()
        if begins == "[":
            yield from scanner.array()
        if begins in ("[", ""):
            return
        first, second = scanner.two_lines()
        if not (second and _is_json(first)):
            yield from _whole(path, scanner.rest())
            return
    # JSON Lines named .json, which is common.
    yield from jsonl_rows(open_file)


def _whole(path: Path, text: str) -> Iterator[Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise DataError(f"{path}: not valid JSON: {error}") from None
        yield from _sequence(path, text)
        return
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    if isinstance(value, dict):
        wrapped = next((value[key] for key in _WRAPPERS if isinstance(value.get(key), list)), None)
        value = [value] if wrapped is None else wrapped
    if not isinstance(value, list):
        raise DataError(f"{path}: an array of rows is needed, not {type(value).__name__}")
    yield from value


def _sequence(path: Path, text: str) -> Iterator[Any]:
    """Objects one behind another, each over several lines, as jq writes them."""
    scanner = _Scanner(path, io.StringIO(text))
    while begins := scanner.next_char():
        if begins != "{":
            raise scanner.error("an object should begin here", scanner.position)
        yield scanner.value()


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


class _Scanner:
    """Reads values from a text, of which only the part in hand is kept."""

    def __init__(self, path: Path, text: Any) -> None:
        self._path, self._text = path, text
        self._decoder = json.JSONDecoder()
        self._buffer = ""
        self.position = 0
        self._lines = 1
        """Number of the line on which the buffer begins."""
        self._ended = False

    def _more(self) -> bool:
        """Read on; the part before `position` is dropped. A value of any length takes time in proportion to it, as
        what is read doubles."""
        if self._ended:
            return False
        read = self._text.read(max(_CHUNK, len(self._buffer) - self.position))
        self._lines += self._buffer.count("\n", 0, self.position)
        self._buffer = self._buffer[self.position :] + read
        self.position = 0
        self._ended = not read
        return bool(read)

    def next_char(self) -> str:
        """The next character that is no white space; nothing at the end."""
        while True:
            while self.position < len(self._buffer):
                char = self._buffer[self.position]
                if char not in _SPACE:
                    return char
                self.position += 1
            if not self._more():
                return ""

    def value(self) -> Any:
        """The value that begins here."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self.position)
            except json.JSONDecodeError as error:
                if self._more():
                    continue
                raise self.error(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:
                raise self.error(str(error), self.position) from None
            if self._is_whole(value, end) or not self._more():
                self.position = end
                return value

    def _is_whole(self, value: Any, end: int) -> bool:
        """Whether a value surely ends there: a number may go on in what is not read yet (`1`, `1.`, `1.5`)."""
        behind = self._buffer[end : end + 1]
        return behind != "" and not (isinstance(value, int | float) and behind in ".eE+-")

    def array(self) -> Iterator[Any]:
        """The values of the array that begins here, up to the end of the text."""
        self.position += 1
        char = self.next_char()
        while char != "]":
            yield self.value()
            char = self.next_char()
            if char not in (",", "]") or not char:
                raise self.error("Expecting ',' or ']' behind a row", self.position)
            if char == ",":
                self.position += 1
                char = self.next_char()
                if char in ("]", ""):
                    raise self.error("Expecting a row behind ','", self.position)
        self.position += 1
        if self.next_char():
            raise self.error("Extra data behind the array", self.position)

    def two_lines(self) -> tuple[str, str]:
        """The line that begins here, and the next one that is not empty, as far as it is read."""
        while "\n" not in self._buffer[self.position :] and self._more():
            pass
        first, _, rest = self._buffer[self.position :].partition("\n")
        while not rest.strip() and self._more():
            first, _, rest = self._buffer[self.position :].partition("\n")
        return first, rest.lstrip()

    def rest(self) -> str:
        """Everything from here on."""
        return str(self._buffer[self.position :] + self._text.read())

    def error(self, problem: str, position: int) -> DataError:
        line = self._lines + self._buffer.count("\n", 0, position)
        return DataError(f"{self._path}: not valid JSON: {problem}, line {line}")
