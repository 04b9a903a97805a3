"""The files of a run's working directory: which of them are sent, which grow, and which mark others as complete."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

RECORD = ".store.json"
"""In a working directory: which commit of which store it has."""
UNSENT = "unsent"
"""Replies of a working directory whose run went on elsewhere; see `fetch.py`."""
MARKERS = frozenset({"manifest.json", "whole.json"})
"""Files that exist only if everything beside and below them is complete; they are made last and removed first."""
_NOT_SENT = frozenset({"nodes.key"})
"""A secret between the machines of one run."""
_NOT_SENT_FOLDERS = frozenset({"features", "torch_extensions", "__pycache__", UNSENT})
"""What is computed again, or belongs to one machine."""


@dataclass(frozen=True)
class Seen:
    """A file as it was seen: equal if nobody has written to it since."""

    size: int
    mtime: int
    """In nanoseconds."""
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Seen:
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


def is_growing(path: str) -> bool:
    """Whether a file is only ever appended to, or written anew under the same name."""
    return path.endswith((".jsonl", "log.txt"))


def is_marker(path: str) -> bool:
    return path.rpartition("/")[2] in MARKERS


def covers(marker: str, path: str) -> bool:
    """Whether a marker says of a file that it is complete."""
    folder = marker.rpartition("/")[0]
    return path != marker and (not folder or path.startswith(f"{folder}/"))


def _is_sent(name: str) -> bool:
    # Hidden files are locks, keys between machines, and files that are being written.
    return not name.startswith(".") and not name.endswith(".tmp") and name not in _NOT_SENT


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        inside = PurePosixPath(Path(folder).relative_to(root).as_posix())
        folders[:] = sorted(name for name in folders if _is_sent(name) and name not in _NOT_SENT_FOLDERS)
        yield from (str(inside / name) for name in sorted(names) if _is_sent(name))


def seen(root: Path, path: str) -> Seen | None:
    """A file as it is now; None if it is not there."""
    try:
        return Seen.of((root / path).stat())
    except OSError:
        return None


def scan(root: Path) -> dict[str, Seen]:
    """The files that are to be sent.

    A marker is among them only if it was there, unchanged, before and after the others were looked at: so they were
    complete before, and nobody had begun to remove them.
    """
    before = {path: seen(root, path) for path in _walk(root) if is_marker(path)}
    found = {path: now for path in _walk(root) if (now := seen(root, path)) is not None}
    return {
        path: now for path, now in found.items() if not is_marker(path) or before.get(path) == now == seen(root, path)
    }


def hash_range(path: Path, start: int, length: int) -> str:
    """SHA-256 of a part of a file; of what there is if the file ends before."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while length > 0 and (data := file.read(min(length, 1 << 20))):
            digest.update(data)
            length -= len(data)
    return digest.hexdigest()


def is_safe(path: str) -> bool:
    """Whether a name from a store stays inside the directory that it is written to."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\0" not in path
