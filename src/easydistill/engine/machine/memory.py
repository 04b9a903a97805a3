"""How much memory this process may take and has taken, and whether the kernel has ended a process for want of it."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60
"""Limits above it are none; cgroups of version 1 have no other word for that."""

_FIRST = 500
"""Of 1,000: as if a process had half of the memory in addition to what it has."""


@dataclass(frozen=True)
class Limit:
    """What memory is limited to."""

    bytes: int
    what: str
    """What sets it, in words."""


def memory_limit() -> Limit | None:
    """The smallest limit on this process's memory; None if none is known."""
    return min(_limits(), key=lambda limit: limit.bytes, default=None)


def _limits() -> Iterator[Limit]:
    for kind, name in ((resource.RLIMIT_AS, "ulimit -v"), (resource.RLIMIT_DATA, "ulimit -d")):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield Limit(soft, name)
    for folder in _cgroups():
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name).strip()
            if text.isdecimal() and int(text) < _UNLIMITED:
                yield Limit(int(text), f"the container's or the job's limit, {folder / name}")
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            yield Limit(int(line.split()[1]) * 1024, "this machine's memory")


def _cgroups() -> Iterator[Path]:
    """The folders that set limits for this process: its group's, and those above it. In a container the paths that it
    is told may not be there; its own group is the root then."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        roots = [_CGROUPS / "memory"] if controllers else [_CGROUPS, _CGROUPS / "unified"]
        for root in roots:
            folder = root / path.lstrip("/")
            while folder != root:
                yield folder
                folder = folder.parent
            yield root


def peak_memory() -> int:
    """The most bytes that this process has had in memory."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def killed_for_memory() -> int:
    """How many processes the kernel has ended so far because memory ran out: of this process's group, else of the
    machine."""
    for folder in _cgroups():
        for name in ("memory.events", "memory.oom_control"):
            for line in _read(folder / name).splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    for line in _read("/proc/vmstat").splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


def be_ended_first() -> None:
    """Have the kernel end this process before its parent where memory runs out, so that one is left to tell it."""
    with contextlib.suppress(OSError, ValueError):
        path = Path("/proc/self/oom_score_adj")
        path.write_text(str(max(_FIRST, int(path.read_text()))), encoding="ascii")


@dataclass(frozen=True)
class GpuMemory:
    """Of the GPU that this process computes on, in bytes."""

    total: int
    free: int
    peak: int
    """The most that this process had."""


def gpu_memory() -> GpuMemory | None:
    """None where no GPU is in use."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    free, total = torch.cuda.mem_get_info()
    return GpuMemory(int(total), int(free), int(torch.cuda.max_memory_reserved()))


def _read(path: str | os.PathLike[str]) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
