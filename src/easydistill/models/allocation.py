"""Memory on a CPU that is used again, not given back to the system and taken from it anew by every tensor.

glibc takes every block above 32 MiB, and at first above 128 KiB, from the system by itself and gives it back when it is
freed. The system clears each page when it is first written to, so a step that allocates the same tensors again clears
the same gigabyte again.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
"""Parameters of glibc's `mallopt`."""
_HERE = {_MMAP_MAX: 0, _TRIM_THRESHOLD: (1 << 31) - 1, _TOP_PAD: 64 << 20}
_AFTERWARDS = {_MMAP_MAX: 1 << 16, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10}
"""glibc's defaults, its thresholds where they have risen to."""
_depth = 0


@contextlib.contextmanager
def reused_memory(on: Any) -> Iterator[None]:
    """Keep what is freed in this context for what is allocated next; what is left goes back to the system at its end.

    Args:
        on: the device that computes; only a CPU's memory is kept.
    """
    global _depth
    libc = _glibc() if on.type == "cpu" else None
    if libc is None:
        yield
        return
    _depth += 1
    if _depth == 1:
        _apply(libc, _HERE)
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            _apply(libc, _AFTERWARDS)
            libc.malloc_trim(0)


def _apply(libc: Any, settings: dict[int, int]) -> None:
    for parameter, value in settings.items():
        libc.mallopt(parameter, value)


@cache
def _glibc() -> Any:
    """This process's C library; None if it is another than glibc."""
    try:
        libc = ctypes.CDLL(None)
        found = (libc.gnu_get_libc_version, libc.mallopt, libc.malloc_trim)
    except (AttributeError, OSError, TypeError):
        return None
    return libc if all(found) else None
