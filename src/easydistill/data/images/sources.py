"""The image files beside the rows that a stage has read: they are part of its input, as the file of the rows is.

Rows name them, so no hash of the rows' file covers them. What a stage read is noted in its directory; a finished stage
is finished only as long as these files are what they were. A file for whose sake a row was rejected is noted too: once
it is there, or another, the row is read.
"""

from __future__ import annotations

import json
from pathlib import Path

from easydistill.data.files import write_json
from easydistill.data.images.store import digest_of
from easydistill.data.plain import without_base64

NAME = "image_sources.json"


class SourceRecord:
    """The files that a stage reads, or would have read."""

    def __init__(self) -> None:
        self._found: dict[str, list[int | str]] = {}

    def add(self, path: Path, digest: str) -> None:
        """Note a file that was there or not.

        Args:
            digest: of its bytes; empty if they were not read.
        """
        name = str(path)
        if without_base64(name) == name:
            self._found[name] = [digest, *(_state(path) if path.is_file() else ())]

    def write(self, directory: Path) -> None:
        """Note them in the stage's directory; a note of earlier ones is removed if there are none."""
        if self._found:
            write_json(directory / NAME, self._found)
        else:
            (directory / NAME).unlink(missing_ok=True)


def changed_sources(directory: Path) -> list[str]:
    """The files that a stage has read and that are gone or others now, and those that it missed and that are there."""
    try:
        noted = json.loads((directory / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        return [NAME]
    return [name for name, (digest, *state) in noted.items() if _is_other(Path(name), digest, state)]


def _is_other(path: Path, digest: str, state: list[int]) -> bool:
    try:
        # A file that has neither been written nor replaced is not read again.
        return _state(path) != state and digest_of(path.read_bytes()) != digest
    except OSError:
        return bool(state)


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
