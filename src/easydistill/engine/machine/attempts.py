"""Whether the last attempt at a stage was ended by the kernel for want of memory: then nobody was left to say it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from easydistill.engine.machine.memory import killed_for_memory, memory_limit
from easydistill.engine.machine.room import words

NAME = ".attempt.json"
"""In a stage's directory while it runs. Hidden: it means nothing on another machine, so no store gets it."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@contextlib.contextmanager
def attempted(directory: Path, say: Callable[[str], None], settings: Callable[[], Sequence[str]]) -> Iterator[None]:
    """An attempt at a stage, which says first how the last one ended if the kernel has ended it.

    Args:
        settings: gives those with which less memory is needed, a line each.
    """
    mark = directory / NAME
    if _ended_by_kernel(mark):
        limit = memory_limit()
        has = "" if limit is None else f" ({words(limit.bytes)} is {limit.what})"
        say(f"note: the kernel ended the last attempt because memory had run out{has}")
        for number, line in enumerate(settings()):
            say(f"    {'→ less is needed with' if number == 0 else '                     '} {line}")
    # Where the disk is full, the stage itself says so.
    with contextlib.suppress(OSError):
        mark.write_text(json.dumps({"boot": _boot(), "killed": killed_for_memory()}), encoding="utf-8")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            mark.unlink()


def _ended_by_kernel(mark: Path) -> bool:
    """Whether a mark was left behind on this machine, and the kernel has ended processes since."""
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
        return bool(found["boot"] == _boot() and killed_for_memory() > found["killed"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _boot() -> str:
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""
