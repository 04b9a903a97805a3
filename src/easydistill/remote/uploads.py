"""Whole files: which of them the store has not, and their way there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easydistill.remote.fetch import WORKERS
from easydistill.remote.history import Part, Parts
from easydistill.remote.local import Seen, hash_range, is_growing, seen
from easydistill.remote.store import Absent, Store

SETTLED = 1.0
"""Seconds without a change after which a file is not being written any more."""
_COPIED = 1 << 20
"""Files of at least this size that the store has under another name are copied inside of it."""

Attempt = Callable[[Callable[[], Any]], Any]


@dataclass
class Round:
    """What one look at the directory has found."""

    put: dict[str, Parts] = field(default_factory=dict)
    """Files that are to be sent, as they will be in the store."""
    looks: dict[str, Seen] = field(default_factory=dict)
    """What they looked like when they were read."""
    unsettled: set[str] = field(default_factory=set)
    """Files that are still being written."""


class Uploads:
    """The whole files of a working directory.

    Args:
        attempt: calls a function until the store has done what it is asked.
    """

    def __init__(self, store: Store, directory: Path, attempt: Attempt) -> None:
        self._store, self._directory, self._attempt = store, directory, attempt
        self._sent: dict[str, Seen] = {}

    def look(self, found: Mapping[str, Seen], files: Mapping[str, Parts], *, final: bool) -> Round:
        """Which files have changed since they were sent.

        Args:
            found: the files of the directory.
            files: those of the store.
            final: nobody writes any more.
        """
        now, result = time.time(), Round()
        for path, look in found.items():
            if is_growing(path) or (path in files and self._sent.get(path) == look):
                continue
            if not final and now - look.mtime / 1e9 < SETTLED:
                result.unsettled.add(path)
                continue
            try:
                digest = hash_range(self._directory / path, 0, look.size)
            except FileNotFoundError:
                result.unsettled.add(path)
                continue
            parts = (Part(path, 0, look.size, digest),)
            result.looks[path] = look
            if files.get(path) == parts:
                self._sent[path] = look
            else:
                result.put[path] = parts
        return result

    def send(self, wanted: Round, files: Mapping[str, Parts]) -> None:
        """Send a round's files; those that were written to meanwhile become unsettled."""
        having = {parts[0].sha256: path for path, parts in files.items() if len(parts) == 1 and parts[0].key == path}
        having = {digest: path for digest, path in having.items() if path not in wanted.put}

        def one(path: str) -> str | None:
            (part,) = wanted.put[path]
            copied = part.length >= _COPIED and self._copied(having.get(part.sha256), path, part.length)
            if not copied:
                try:
                    self._attempt(lambda: self._store.put_file(path, self._directory / path))
                except (FileNotFoundError, Absent):
                    # The run has removed it, as it does with old checkpoints; else it is the bucket that is gone.
                    if (self._directory / path).exists():
                        raise
            return None if seen(self._directory, path) == wanted.looks[path] else path

        with ThreadPoolExecutor(WORKERS) as pool:
            changed = {path for path in pool.map(one, wanted.put) if path is not None}
        for path in changed:
            del wanted.put[path]
        wanted.unsettled |= changed

    def _copied(self, source: str | None, target: str, size: int) -> bool:
        if source is None:
            return False
        try:
            self._attempt(lambda: self._store.copy(source, target, size))
        except Absent:
            return False
        return True

    def committed(self, done: Round) -> None:
        """Remember what the store has now."""
        self._sent |= {path: done.looks[path] for path in done.put}
