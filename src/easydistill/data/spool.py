"""Lists on disk: for rows that are many more than memory holds."""

from __future__ import annotations

import os
import pickle
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")
MOST_IN_MEMORY = 200_000
"""Rows of a file that are read into memory; more are read onto disk."""
MOST_TEXT_IN_MEMORY = 64 << 20
"""Characters of the rows of a file that are read into memory, the same."""
_BUFFER = 1 << 20


class Blobs(Sequence[bytes]):
    """A growing sequence of byte strings in a temporary file, which disappears with it.

    In memory are eight bytes a string, and up to a megabyte that is not written yet.

    Args:
        directory: of the file; by default the system's for temporary files.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._file: Any = None
        self._ends = array("Q")
        self._waiting: list[bytes] = []
        self._size = self._written = 0

    def append(self, data: bytes) -> None:
        self._waiting.append(data)
        self._size += len(data)
        self._ends.append(self._size)
        if self._size - self._written > _BUFFER:
            self._flush()

    def _flush(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="easydistill-", dir=self._directory, buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
        view = memoryview(b"".join(self._waiting))
        while view:
            count = os.pwrite(self._file.fileno(), view, self._written)
            view, self._written = view[count:], self._written + count
        self._waiting = []

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[bytes]: ...
    def __getitem__(self, at: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        late = len(self) - at
        if late <= len(self._waiting):
            return self._waiting[-late]
        start = self._ends[at - 1] if at else 0
        return os.pread(self._file.fileno(), self._ends[at] - start, start)

    def __iter__(self) -> Iterator[bytes]:
        count = start = 0
        while count < len(self._ends):
            self._flush()
            # A block of them at a time.
            last = count
            while last + 1 < len(self._ends) and self._ends[last + 1] - start <= _BUFFER:
                last += 1
            block, base = os.pread(self._file.fileno(), self._ends[last] - start, start), start
            for number in range(count, last + 1):
                yield block[start - base : self._ends[number] - base]
                start = self._ends[number]
            count = last + 1


class Spool(Sequence[T], Generic[T]):
    """A growing sequence of values in a temporary file. Each one that is read is a copy of its own."""

    def __init__(self, values: Iterable[T] = (), directory: Path | None = None) -> None:
        self._blobs = Blobs(directory)
        self.extend(values)

    def append(self, value: T) -> None:
        self._blobs.append(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))

    def extend(self, values: Iterable[T]) -> None:
        for value in values:
            self.append(value)

    def __len__(self) -> int:
        return len(self._blobs)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[T]: ...
    def __getitem__(self, at: int | slice) -> T | Sequence[T]:
        found: Any = self._blobs[at]
        return pickle.loads(found) if isinstance(at, int) else list(map(pickle.loads, found))

    def __iter__(self) -> Iterator[T]:
        return map(pickle.loads, self._blobs)


Rows = list[T] | Spool[T]
"""Rows in memory, or on disk if there are many."""


def like(rows: Sequence[Any]) -> Any:
    """An empty list, on disk if that is where `rows` are."""
    return Spool() if isinstance(rows, Spool) else []
