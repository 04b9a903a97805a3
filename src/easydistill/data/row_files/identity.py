"""What identifies the rows that a path names, for fingerprints: the bytes of its files, not where they lie."""

from __future__ import annotations

import time
from pathlib import Path

from easydistill.data.files import hash_file
from easydistill.data.records import content_hash
from easydistill.data.row_files.hub_place import HubPlace
from easydistill.data.row_files.places import place_of

_SETTLED_NS = 2_000_000_000
"""A file that was written less than this ago could be written again within one tick of its file system's clock."""
_known: dict[tuple[str, int, int, int, int], str] = {}


def hash_rows(where: str | Path) -> str:
    """A hash of the rows at a path.

    Of one plain file, it is the file's own (`hash_file`); of several, it covers their names below the folder and their
    hashes, in order; of a hub's data set, its commit, config, split and files.

    Raises:
        DataError: the path names nothing that can be read.
        MissingExtra: it is a hub's data set, and `datasets` is not installed.
    """
    place = place_of(where)
    if isinstance(place, HubPlace):
        from easydistill.data.row_files.hub import hub_hash

        return hub_hash(place)
    if place.single:
        return _hash(place.root)
    return content_hash([[path.relative_to(place.root).as_posix(), _hash(path)] for path in place.files])


def _hash(path: Path) -> str:
    """A file's hash. A file is read once in a process, as long as it does not change."""
    found = path.stat()
    key = (str(path.absolute()), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if key not in _known:
        made = hash_file(path)
        if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < _SETTLED_NS:
            return made
        _known[key] = made
    return _known[key]
