"""Errors of the system and of libraries that say that the machine was too little for the run, as errors for its user.

A library may wrap such an error, or tell it in words of its own: safetensors, torch, tokenizers and SQLite do. So the
whole chain of an error's causes is looked at.
"""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from easydistill.config.location import cache_directory
from easydistill.data.files import OF_STORAGE
from easydistill.data.unwritten import unwritten_of_this_process
from easydistill.engine.machine.memory import gpu_memory, memory_limit, peak_memory
from easydistill.engine.machine.room import room_at, who_may, words
from easydistill.engine.usage import most_addresses
from easydistill.errors import (
    CloudError,
    EasyDistillError,
    Interrupted,
    MachineError,
    OutOfMemory,
    StorageError,
    StoreError,
)

AGAIN = "run the same command again: it goes on from what is finished, and asks for nothing that was paid for"
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOLCK})
"""Errors that others than files have, too: they are of storage if they name a file."""
_ELSEWHERE = (StoreError, CloudError, Interrupted)
"""Their causes may look like errors of this machine: clients of stores raise EIO."""
_LITTLE = 1 << 20
"""Bytes below which a disk counts as full."""
_OF_PLACE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENOLCK, errno.ENOSPC})
_IN_WORDS = re.compile(
    r"os error (\d+)|\[errno (\d+)\]|(no space left on device)|(disk quota exceeded)|(database or disk is full)"
    r"|(PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+|file write failed)",
    re.IGNORECASE,
)
_MEMORY_WORDS = re.compile(
    r"can't allocate memory|not enough memory|out of memory|cannot allocate memory|std::bad_alloc|bad allocation"
    r"|failed to allocate|CUBLAS_STATUS_ALLOC_FAILED|unable to allocate|realloc of size",
    re.IGNORECASE,
)
_OF_TORCH = "OutOfMemoryError"
"""torch's class for its devices; torch may not be here."""
_ON_GPU = re.compile(r"cuda|cublas|hip|gpu", re.IGNORECASE)


def machine_error(
    error: BaseException,
    near: Path,
    settings: Callable[[], Sequence[str]] = tuple,
    needed: Callable[[], str] = str,
) -> MachineError | None:
    """The error that tells the user what the machine lacks: itself, if it does; None if it is none of the machine's.

    Args:
        near: a directory that was being written to, where the error names no file.
        settings: gives those with which less memory is needed, a line each.
        needed: gives a line on how much room is needed, or nothing.
    """
    for found, is_cause in _chain(error):
        if isinstance(found, _ELSEWHERE):
            return None
        if isinstance(found, MachineError):
            return found
        if (storage := _as_storage(found, is_cause=is_cause)) is not None:
            return StorageError(explained_storage(storage, near, needed=needed))
        if _is_of_memory(found):
            return OutOfMemory(_explained_memory(found, settings()))
        if "can't start new thread" in str(found) or (found is error and isinstance(found, BlockingIOError)):
            return MachineError(_explained_processes(found))
    return None


def _chain(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """An error, its causes, and what was being handled when it was raised, unless that was put out of sight.

    Yields:
        an error, and whether it is the first one or a stated cause: what was only being handled may have been expected.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    is_cause = True
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current, is_cause
        if isinstance(current, BaseExceptionGroup):
            for inner in current.exceptions:
                yield from _chain(inner)
        implied = None if current.__suppress_context__ or isinstance(current, EasyDistillError) else current.__context__
        is_cause = is_cause and current.__cause__ is not None
        current = current.__cause__ or implied


# --- storage ----------------------------------------------------------------------------------------------------------


def _as_storage(error: BaseException, *, is_cause: bool) -> OSError | None:
    """An error of files as the system would raise it; None if it is another one."""
    if isinstance(error, OSError):
        if error.errno in OF_STORAGE or error.errno in {errno.EMFILE, errno.ENFILE}:
            return error
        if is_cause and error.errno in _REFUSED and error.filename is not None:
            return error
    if isinstance(error, EasyDistillError | ConnectionError):
        return None
    text = str(error)
    match = _IN_WORDS.search(text)
    if match is None:
        return None
    number = int(match[1] or match[2] or 0)
    if not number:
        number = errno.EDQUOT if match[4] else errno.ENOSPC
    return OSError(number, os.strerror(number)) if number in OF_STORAGE else None


def explained_storage(error: OSError, near: Path, head: str = "", needed: Callable[[], str] = str) -> str:
    """What has happened to a file, what there is, and what to do.

    Args:
        near: the directory, where the error names no file.
        head: words before it, such as the setting that names the directory.
        needed: gives a line on how much room is needed, or nothing.
    """
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else _likely_place(error, near)
    what, todo = _what_and_todo(error, path)
    if error.errno in _OF_PLACE and path.absolute().is_relative_to(near.absolute()):
        todo += ", or give the run another output_dir"
    lines = [f"{head}{path}: {what}"]
    if error.errno in {errno.ENOSPC, errno.EDQUOT} and (room := room_at(path)) is not None:
        lines.append(f"    {words(room.free)} are free at {room.mount}")
        if room.files == 0:
            lines[-1] += ", and no file can be made there: its inodes are used up"
        lines += [line] if (line := needed()) else []
    return "\n".join([*lines, *_kept_lines(), f"    → {todo}, then {AGAIN}"])


def _likely_place(error: OSError, near: Path) -> Path:
    """Where a file was that an error does not name: a full folder for temporary files, a full cache, else near."""
    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
        return near
    for place in (near, Path(os.environ.get("TMPDIR") or "/tmp"), cache_directory()):
        room = room_at(place)
        if room is not None and (room.free < _LITTLE or room.files == 0):
            return place
    return near


def _what_and_todo(error: OSError, path: Path) -> tuple[str, str]:
    """What is the matter with a path, and what would help."""
    said = error.strerror or str(error)
    match error.errno:
        case errno.ENOSPC:
            return "no space is left", "free space there"
        case errno.EDQUOT:
            return "your quota there is used up", "remove files of yours there, or have the quota raised (quota -s)"
        case errno.EFBIG:
            return f"a file may not be that large: {_size_limit()}", "raise the limit (ulimit -f)"
        case errno.EROFS:
            return "the file system is read-only", "mount it for writing"
        case errno.EACCES | errno.EPERM:
            return f"{said.lower()} ({who_may(path)})", "allow it (chown, chmod)"
        case errno.ENOTDIR:
            return "a part of this path is a file, not a directory", "move it away"
        case errno.EMFILE | errno.ENFILE:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            return f"too many files are open (ulimit -n: {soft})", "raise the limit (ulimit -n)"
        case errno.ESTALE | errno.ETIMEDOUT | errno.EHOSTDOWN:
            return f"the share does not answer as it did: {said}", "see to the share, and mount it again"
        case errno.ENOLCK:
            return "the file system has no locks to give", "see to its lock service"
        case _:
            return f"the disk or the share has failed: {said}", "see to it (dmesg tells more)"


def _size_limit() -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft == resource.RLIM_INFINITY:
        return "its file system does not take it"
    return f"ulimit -f allows {words(soft)}"


def _kept_lines() -> list[str]:
    """Where answers are that came and could not be written."""
    lines: list[str] = []
    for unwritten in unwritten_of_this_process():
        if unwritten.records:
            lines.append(
                f"    {unwritten.records} records that {unwritten.journal.name} did not take are kept in "
                f"{unwritten.path}; the same command takes them up"
            )
        if unwritten.lost:
            lines.append(f"    {unwritten.lost} records found no place on this machine, and are lost")
    return lines


# --- memory -----------------------------------------------------------------------------------------------------------


def _is_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if type(error).__name__ == _OF_TORCH:
        return True
    # torch's errors are RuntimeErrors, those of Rust libraries plain Exceptions.
    told = isinstance(error, RuntimeError | OSError) or type(error) is Exception or "Error" in type(error).__name__
    return told and not isinstance(error, EasyDistillError) and _MEMORY_WORDS.search(str(error)) is not None


def _explained_memory(error: BaseException, settings: Sequence[str]) -> str:
    text = next(iter(str(error).strip().splitlines()), "")[:300]
    on_gpu = type(error).__name__ == _OF_TORCH or _ON_GPU.search(text) is not None
    lines = [f"memory has run out{' on the GPU' if on_gpu else ''}" + (f": {text}" if text else "")]
    lines.append(f"    {_gpu_words() if on_gpu else memory_words()}")
    lines += _kept_lines()
    return "\n".join([*lines, *advice(settings)])


def advice(settings: Sequence[str]) -> list[str]:
    """What to do where memory has run out, as lines of an error.

    Args:
        settings: with which less is needed.
    """
    if not settings:
        return [f"    → end other programs, or take a machine with more memory, then {AGAIN}"]
    return ["    → less is needed with", *(f"        {line}" for line in settings), f"      then {AGAIN}"]


def memory_words() -> str:
    """What this process took of the machine's memory, and what it may take."""
    limit = memory_limit()
    if limit is not None and limit.what.startswith("ulimit") and (space := most_addresses()) is not None:
        return f"this process had {words(space)} of addresses at most; {limit.what} allows {words(limit.bytes)}"
    had = f"this process had {words(peak_memory())} at most"
    return had if limit is None else f"{had}; {words(limit.bytes)} is {limit.what}"


def _gpu_words() -> str:
    found = gpu_memory()
    if found is None:
        return "how much it has is not known here"
    return (
        f"this process had {words(found.peak)} of its {words(found.total)} at most; {words(found.free)} are free now "
        "(nvidia-smi shows who has the rest)"
    )


def _explained_processes(error: BaseException) -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    allowed = "no limit of this user" if soft == resource.RLIM_INFINITY else f"ulimit -u: {soft}"
    return (
        f"no more threads or processes can be started: {error} ({allowed}; a container may have one of its own)\n"
        f"    → raise it, or end other programs, then {AGAIN}"
    )
