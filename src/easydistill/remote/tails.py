"""Files that grow: what of each has been sent, and what has not."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from easydistill.remote.fetch import is_there
from easydistill.remote.history import Parts, size_of

MOST = 8 << 20
"""Most bytes of one piece."""
_GUARD = 4096
_QUIET = 2.0
"""Seconds after which the last line of a file is not being written any more."""


@dataclass
class Tail:
    """How far a file has been sent."""

    sent: int = 0
    inode: int = 0
    guard: bytes = b""
    """The last bytes that were sent: they tell whether the file is still the same one."""
    known: bool = False
    """False for a file of which the store has nothing."""

    @classmethod
    def resumed(cls, path: Path, parts: Parts) -> Tail:
        """Of a file that the store has; from the beginning if it has another one."""
        if not is_there(path, parts):
            return cls()
        sent = size_of(parts)
        with path.open("rb") as file:
            return cls(sent, os.fstat(file.fileno()).st_ino, _before(file.fileno(), sent), known=True)


@dataclass(frozen=True)
class Piece:
    """Bytes to send."""

    data: bytes
    start: int
    """Where they begin in the file; 0 if the store's version, if it has one, is to be replaced."""
    after: Tail
    """Once they are sent."""


def next_piece(path: Path, tail: Tail, *, final: bool = False, most: int = MOST) -> Piece | None:
    """What of a file is to be sent next; None if there is nothing, or no file.

    Ends with a line's end, as the rest of a line may yet be cut off; unless nobody has written for seconds.

    Args:
        final: nobody writes any more.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(descriptor)
        start = tail.sent
        same = tail.known and status.st_ino == tail.inode and status.st_size >= start
        if not same or _before(descriptor, start) != tail.guard:
            start = 0
        data = os.pread(descriptor, most, start)
        if not final and time.time() - status.st_mtime < _QUIET and len(data) < most:
            data = data[: data.rfind(b"\n") + 1]
        if not data and tail.known and start == tail.sent:
            return None
        end = start + len(data)
        return Piece(data, start, Tail(end, status.st_ino, _before(descriptor, end), known=True))
    finally:
        os.close(descriptor)


def _before(descriptor: int, end: int) -> bytes:
    return os.pread(descriptor, min(_GUARD, end), max(0, end - _GUARD))
