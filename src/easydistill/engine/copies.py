"""Copies of runs that took place elsewhere, in directories of this machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easydistill.data.files import read_json, write_json
from easydistill.engine.run_directory import RunDirectory
from easydistill.errors import DataError

MARK = ".fetched"
"""Says which files of a directory were fetched; it was written after all of them."""
_OF_A_RUN = ("log.txt", "summary.json")
"""What a directory has in which a run took place."""
_MADE_AGAIN = ("report.html", "report.md")
"""What `easydistill report` writes into a copy too."""


@contextlib.contextmanager
def copying(directory: Path) -> Iterator[None]:
    """While a run is copied into a directory: nobody else writes there, and nothing that was written here is replaced.

    Raises:
        RunDirectoryBusy: a job is running here in the same directory.
        DataError: a run took place here, or files have been changed here since they were fetched.
    """
    mark = directory / MARK
    with RunDirectory(directory).locked():
        found = _read(mark)
        _refuse_own(directory, mark, found)
        known = set() if found is None else set(found["files"])
        # A copy that breaks off may be begun again.
        write_json(mark, {"whole": False, "files": sorted(known)})
        started = mark.stat().st_ctime_ns
        yield
        # The time of the inode's change is this machine's; that of the content comes with the copy.
        new = {path for path, changed in _files(directory) if changed >= started}
        write_json(mark, {"whole": True, "files": sorted(known | new)})


def _refuse_own(directory: Path, mark: Path, found: dict[str, Any] | None) -> None:
    if found is None:
        own = [name for name in _OF_A_RUN if (directory / name).exists()]
        said = "a run took place here"
    elif found["whole"]:
        fetched = mark.stat().st_ctime_ns
        names = set(found["files"])
        own = [path for path, changed in _files(directory) if changed > fetched and path in names]
        said = "it has changed here since it was fetched"
    else:
        return
    if own:
        raise DataError(
            f"{directory / sorted(own)[0]}: {said}, and what is fetched would replace it\n"
            "    → move what you want to keep out of this directory, or fetch into another one"
        )


def _read(mark: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = read_json(mark)
    except (OSError, ValueError):
        return None
    return found


def _files(directory: Path) -> Iterator[tuple[str, int]]:
    """Paths inside of a directory, and when each was written here, in nanoseconds."""
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder) / name
            relative = path.relative_to(directory).as_posix()
            if not name.startswith(".") and relative not in _MADE_AGAIN:
                yield relative, path.lstat().st_ctime_ns
