"""Who is asking for what right now, over all processes: each request in flight is one locked byte of one file.

The byte's place is taken from the request's key. The system frees a process's locks when it ends, however it ends, so
no claim outlives its owner. Where the file system knows no such locks, nothing is claimed.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path

LOGGER = logging.getLogger(__name__)

MOST = 1024
"""Claims of one process: the system looks through all of a file's locks for each new one."""
_HELD_BY_ANOTHER = {errno.EACCES, errno.EAGAIN}


class Claims:
    """The claims of this process. The file must not be opened by anyone else in it: closing it would free them all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self._held: set[str] = set()
        self._works = True

    def take(self, key: str) -> bool:
        """Claim a request; False if another process has it."""
        if key in self._held or not self._works or len(self._held) >= MOST:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(key))
        except OSError as error:
            if error.errno in _HELD_BY_ANOTHER:
                return False
            LOGGER.info("%s: no locks here (%s): runs side by side may ask the same twice", self._path, error)
            self._works = False
            return True
        self._held.add(key)
        return True

    def free(self, key: str) -> None:
        """Give a request up, or say that its answer is kept."""
        if key in self._held:
            self._held.remove(key)
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _byte(key))

    def free_all(self) -> None:
        """Give up all that is held."""
        for key in list(self._held):
            self.free(key)

    def close(self) -> None:
        os.close(self._file)
        self._held.clear()


def _byte(key: str) -> int:
    # 60 bits of the key: two of 1,024 requests share a byte with a chance of 10⁻¹², and one then waits for the other.
    return int(key[:15], 16)
