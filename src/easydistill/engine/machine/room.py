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


def check_room(path: Path, needed: int, what: str) -> None:
    """Refuse to start what certainly has no room.

    Args:
        path: where it is going to be written; need not exist yet.
        needed: bytes.
        what: is written, in words.

    Raises:
        StorageError: less is free.
    """
    found = room_at(path)
    if found is not None and found.free < needed:
        raise StorageError(
            f"{what} {'need' if what.endswith('s') else 'needs'} {words(needed)} at {path}, and {words(found.free)} "
            f"are free there ({found.mount})\n"
            "    → free space, or give the run another output_dir"
        )


def lack_of_room(path: Path, needed: int) -> str | None:
    """A line if what may be written has no room; None if it has, or that cannot be told."""
    found = room_at(path)
    if found is None or found.free >= needed:
        return None
    return f"may need {words(needed)} on disk; {words(found.free)} are free at {found.mount}"


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
