"""The directory on disk that an untrusted program writes to: how full it is, and its removal whatever it contains.

Nothing here follows a symbolic link or builds a path, and few descriptors are open at a time: a program may nest
directories deeper than the longest path allows, or replace a directory by a link while it is being inspected.
"""
# ruff: noqa: PTH208

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_MAX_DEPTH = 64
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def fresh_directory(program: bytes, owner: int | None) -> Iterator[Path]:
    """A new directory with `program.py` and an empty directory `box` that belongs to `owner`; removed afterwards."""
    base = Path(tempfile.mkdtemp(prefix="easydistill-sandbox-"))
    top = os.open(base, _OPEN_DIRECTORY)
    try:
        base.chmod(0o711)
        (base / "program.py").write_bytes(program)
        (base / "program.py").chmod(0o444)
        (base / "box").mkdir(0o700)
        if owner is not None:
            os.chown(base / "box", owner, owner)
        yield base
    finally:
        try:
            remove_contents(top)
            # A program of the same user may have moved or removed the directory itself.
            with contextlib.suppress(FileNotFoundError):
                Path(f"/proc/self/fd/{top}").readlink().rmdir()
        finally:
            os.close(top)


def exceeded_limit(directory: Path, max_bytes: int, max_files: int) -> str:
    """The limit that a directory in use exceeds, in words; empty if it exceeds none.

    Bytes are those on disk, so holes do not count. Files that are deleted but still open cannot be seen.
    """
    used = files = 0
    try:
        opened = [_enter(str(directory), None)]
    except OSError:
        return "its directory no longer exists"
    pending: list[list[str]] = [os.listdir(opened[0])]
    try:
        while opened:
            if not pending[-1]:
                pending.pop()
                os.close(opened.pop())
                continue
            name = pending[-1].pop()
            try:
                status = os.stat(name, dir_fd=opened[-1], follow_symlinks=False)
                used, files = used + status.st_blocks * 512, files + 1
                if stat.S_ISDIR(status.st_mode):
                    opened.append(_enter(name, opened[-1]))
                    pending.append(os.listdir(opened[-1]))
            except OSError:  # deleted or replaced since it was listed
                continue
            if used > max_bytes:
                return f"more than {max_bytes} bytes in its directory"
            if files > max_files:
                return f"more than {max_files} files in its directory"
            if len(opened) > _MAX_DEPTH:
                return f"directories nested more than {_MAX_DEPTH} deep"
        return ""
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _enter(name: str, parent: int | None) -> int:
    """Open a directory, even if its owner, this user, made it unreadable."""
    try:
        return os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
    except PermissionError:
        _make_accessible(name, parent)
        return os.open(name, _OPEN_DIRECTORY, dir_fd=parent)


def _make_accessible(name: str, parent: int | None) -> None:
    # Through its descriptor, because the name may refer to something else by now.
    place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        Path(f"/proc/self/fd/{place}").chmod(0o700)
    finally:
        os.close(place)


def remove_contents(top: int) -> None:
    """Remove everything in an open directory, to which no process may be writing any more.

    It descends and returns through `..` with one descriptor, so depth does not matter.
    """
    os.fchmod(top, 0o700)
    here = os.dup(top)
    entered: list[str] = []
    pending = [_remove_files(here)]
    try:
        while True:
            if pending[-1]:
                name = pending[-1].pop()
                below = _enter(name, here)
                os.fchmod(below, 0o700)
                os.close(here)
                here = below
                entered.append(name)
                pending.append(_remove_files(here))
            elif entered:
                above = os.open("..", _OPEN_DIRECTORY, dir_fd=here)
                os.close(here)
                here = above
                pending.pop()
                os.rmdir(entered.pop(), dir_fd=here)
            else:
                return
    finally:
        os.close(here)


def _remove_files(folder: int) -> list[str]:
    """Remove everything but the directories, and return their names."""
    directories = []
    for name in os.listdir(folder):
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            directories.append(name)
        else:
            os.unlink(name, dir_fd=folder)
    return directories
