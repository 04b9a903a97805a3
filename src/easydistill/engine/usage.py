"""How much memory a stage takes at its peak: what the operating system says of this process, and PyTorch of its GPU.

    peak = the highest resident memory from the stage's beginning to its end, libraries and what earlier stages have
           left included

Linux keeps the highest value of a process (`VmHWM`) and begins anew when 5 is written to `clear_refs` (proc(5)). Where
it cannot, a stage's peak is that of the process so far, and is only kept if it has grown.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from easydistill.data.files import read_json, write_json

NAME = "usage.json"
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_PEAK, _NOW, _ADDRESSES = "VmHWM", "VmRSS", "VmPeak"


@dataclass(frozen=True)
class Usage:
    """What a stage took; in bytes."""

    peak_memory_bytes: int | None = None
    """Of this process, in the CPU's memory; None where the system does not tell."""
    memory_before_bytes: int | None = None
    """Of this process when the stage began."""
    peak_gpu_bytes: int | None = None
    """Reserved by PyTorch on the GPU; None without one."""
    fingerprint: str = ""
    """Of the stage that was run."""

    def write(self, directory: Path) -> None:
        write_json(directory / NAME, asdict(self))

    @staticmethod
    def read(directory: Path) -> Usage | None:
        """What is written in a stage's directory; None if nothing is."""
        try:
            value = read_json(directory / NAME)
            return Usage(**value)
        except (OSError, ValueError, TypeError):
            return None


class Meter:
    """Watches this process's memory from its making until `read`."""

    def __init__(self) -> None:
        self._fresh = _begin_anew()
        self._highest = _bytes(_PEAK)
        self._before = _bytes(_NOW)
        gpu = _gpu()
        if gpu is not None:
            gpu.reset_peak_memory_stats()

    def read(self, fingerprint: str) -> Usage:
        peak = _bytes(_PEAK)
        if not self._fresh and peak == self._highest:
            peak = None
        gpu = _gpu()
        reserved = None if gpu is None else int(gpu.max_memory_reserved())
        return Usage(peak, self._before, reserved, fingerprint)


def resident_bytes() -> int | None:
    """Of this process, now; None where the system does not tell."""
    return _bytes(_NOW)


def most_addresses() -> int | None:
    """The most bytes of addresses that this process has had, which `ulimit -v` limits; None where the system does not
    tell."""
    return _bytes(_ADDRESSES)


def _begin_anew() -> bool:
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")
        return True
    return False


def _bytes(name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def _gpu() -> Any:
    """`torch.cuda`, if this process uses it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return torch.cuda
