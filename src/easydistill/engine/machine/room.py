"""Room for files: what is free, whether a directory can be written, whether what a run is going to write has room."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from easydistill.data.files import sync
from easydistill.errors import StorageError

_PROBE = 4096
"""Bytes that a directory must take."""


@dataclass(frozen=True)
class Room:
    """What a file system has left for this user."""

    free: int
    """Bytes."""
    files: int | None
    """How many files more; None where that is not limited."""
    mount: Path
    """Where it is mounted."""


def room_at(path: Path) -> Room | None:
    """Room for a file or directory, which need not exist yet; None if that cannot be told."""
    place = existing(path)
    try:
        found = os.statvfs(place)
        device = place.stat().st_dev
        mount = place.absolute()
        while mount.parent != mount and mount.parent.stat().st_dev == device:
            mount = mount.parent
    except OSError:
        return None
    return Room(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None, mount)


def existing(path: Path) -> Path:
    """A path itself if it exists, else the nearest folder above it that does."""
    place = path.absolute()
    while place.parent != place:
        with contextlib.suppress(OSError):
            if place.exists():
                return place
        place = place.parent
    return place


def words(size: float) -> str:
    """A number of bytes in words."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size:.0f} bytes"


def check_writable(directory: Path, what: str) -> None:
    """Make a directory, with those above it, and try to write in it.

    Args:
        what: the setting that names it.

    Raises:
        StorageError: it cannot be made or written.
    """
    from easydistill.engine.machine.explain import explained_storage

    probe = directory / f".probe.{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            view = memoryview(b"\0" * _PROBE)
            while view:
                view = view[os.write(descriptor, view) :]
            sync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.filename is None or str(error.filename) == str(probe):
            error.filename = str(directory)
        raise StorageError(explained_storage(error, directory, f"{what}: ")) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


@dataclass(frozen=True)
class Needed:
    """Bytes that are going to be written."""

    certain: int = 0
    """At least, however the run goes."""
    likely: int = 0
    """At most, checkpoints and the like with it."""

    def __add__(self, other: Needed) -> Needed:
        return Needed(self.certain + other.certain, self.likely + other.likely)


def check_room(path: Path, needed: Needed, what: str) -> str | None:
    """Compare what is going to be written with what is free; a line if it may be too little.

    Args:
        path: the directory that it goes to, which need not exist yet. What it holds already counts as written.
        what: is written, in words.

    Raises:
        StorageError: what is certain to be written has no room.
    """
    found = room_at(path)
    if found is None or (needed.likely <= found.free and needed.certain <= found.free):
        return None
    free = found.free + _size_of(path)
    there = f"{words(found.free)} are free at {found.mount}"
    if needed.certain > free:
        raise StorageError(
            f"{what}: {words(needed.certain)} are needed at {path}, and {there}\n"
            "    → free space, or give the run another output_dir"
        )
    if needed.likely > free:
        return f"{what} may need {words(needed.likely)} of disk, and {there}"
    return None


def _size_of(path: Path) -> int:
    """Bytes of the files in a directory; 0 if there is none."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(folder) / name).lstat().st_size
    return total


def unwritable(path: Path) -> str | None:
    """Why a file or directory cannot be made at a path, as far as that shows without trying; None if it does not."""
    place = existing(path.parent)
    if not place.is_dir():
        return f"{place} is a file, not a directory"
    return None if os.access(place, os.W_OK | os.X_OK) else f"{who_may(place)}, or its file system is read-only"


def who_may(path: Path) -> str:
    """Whose the nearest existing place of a path is, and who asks."""
    place = existing(path)
    try:
        about = place.stat()
    except OSError:
        return str(place)
    return f"{place} is {_user(about.st_uid)}'s, {stat.filemode(about.st_mode)}; this is {_user(os.geteuid())}"


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
