"""A directory on disk that a hostile program writes to: how full it is, and its removal whatever is in it.

Nothing here follows a symbolic link or builds a path, and few descriptors are open at a time: a program may nest
directories deeper than any path may be long, or swap a directory for a link while it is being looked at.
"""
# ruff: noqa: PTH208

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_DEEPEST = 64
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def fresh_directory(program: bytes, owner: int | None) -> Iterator[Path]:
    """A new directory that holds `program.py` and an empty `box`, which belongs to `owner`. Removed afterwards."""
    base = Path(tempfile.mkdtemp(prefix="easydistill-sandbox-"))
    top = os.open(base, _FOLDER)
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
            empty(top)
            # A program of the same user may have moved or removed it.
            with contextlib.suppress(FileNotFoundError):
                Path(f"/proc/self/fd/{top}").readlink().rmdir()
        finally:
            os.close(top)


def excess(directory: Path, most_bytes: int, most_files: int) -> str:
    """What is too much in a directory that is being written to; empty where nothing is.

    Bytes are those on disk, so holes do not count. Files that are deleted but open are out of sight.
    """
    used = files = 0
    try:
        opened = [_enter(str(directory), None)]
    except OSError:
        return "its directory is not there any more"
    waiting: list[list[str]] = [os.listdir(opened[0])]
    try:
        while opened:
            if not waiting[-1]:
                waiting.pop()
                os.close(opened.pop())
                continue
            name = waiting[-1].pop()
            try:
                status = os.stat(name, dir_fd=opened[-1], follow_symlinks=False)
                used, files = used + status.st_blocks * 512, files + 1
                if stat.S_ISDIR(status.st_mode):
                    opened.append(_enter(name, opened[-1]))
                    waiting.append(os.listdir(opened[-1]))
            except OSError:  # it is gone, or something else, since it was listed
                continue
            if used > most_bytes:
                return f"more than {most_bytes} bytes in its directory"
            if files > most_files:
                return f"more than {most_files} files in its directory"
            if len(opened) > _DEEPEST:
                return f"directories nested more than {_DEEPEST} deep"
        return ""
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _enter(name: str, parent: int | None) -> int:
    """Open a directory, also one that its owner, this user, made unreadable."""
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except PermissionError:
        _unlock(name, parent)
        return os.open(name, _FOLDER, dir_fd=parent)


def _unlock(name: str, parent: int | None) -> None:
    # By its descriptor: the name may lead elsewhere by now.
    place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        Path(f"/proc/self/fd/{place}").chmod(0o700)
    finally:
        os.close(place)


def empty(top: int) -> None:
    """Remove all that is in an open directory. Nobody else may be writing to it.

    It goes down and comes back by `..`, with one descriptor, so depth does not matter.
    """
    os.fchmod(top, 0o700)
    here = os.dup(top)
    entered: list[str] = []
    waiting = [_only_directories(here)]
    try:
        while True:
            if waiting[-1]:
                name = waiting[-1].pop()
                below = _enter(name, here)
                os.fchmod(below, 0o700)
                os.close(here)
                here = below
                entered.append(name)
                waiting.append(_only_directories(here))
            elif entered:
                above = os.open("..", _FOLDER, dir_fd=here)
                os.close(here)
                here = above
                waiting.pop()
                os.rmdir(entered.pop(), dir_fd=here)
            else:
                return
    finally:
        os.close(here)


def _only_directories(folder: int) -> list[str]:
    """Remove the rest, and name them."""
    directories = []
    for name in os.listdir(folder):
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            directories.append(name)
        else:
            os.unlink(name, dir_fd=folder)
    return directories
