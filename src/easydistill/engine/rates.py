"""How fast this machine's earlier runs were: a line for each stage that ran at a stretch, and what follows for others.

    seconds of a stage to come = its work × (seconds / work) of stages of the same kind

The file is `rates.jsonl` in the cache directory, or where `EASYDISTILL_RATES` says; with that empty, none is kept. It
holds kinds of work, amounts, seconds, dates, and the machine's processor or a server's address and model; nothing else
of configs, and nothing of data. It may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from easydistill.config.location import cache_directory
from easydistill.engine.stage import Work

SWITCH = "EASYDISTILL_RATES"
NAME = "rates.jsonl"
_NEAREST = 3
"""Earlier stages that are compared: those whose amount of work is nearest, for small ones are mostly their start."""
_READ = 2000
"""Lines that are read, the latest."""
_LARGEST = 1 << 20
"""Bytes of the file beyond which it is cut to its latest lines."""


@dataclass(frozen=True)
class Rate:
    """What an earlier stage took."""

    kind: str
    on: str
    amount: float
    seconds: float
    threads: int
    """Of the processor that it could use."""
    date: str
    machine: str = ""
    """Its processor and GPUs: the file may lie where several machines read it."""
    probed: bool = False
    """It was measured for a plan, not run."""


@dataclass(frozen=True)
class Expected:
    """How long a stage will take."""

    seconds: float
    rates: int
    """Earlier stages that it is judged by."""
    probed: bool
    """They were measured for a plan."""


def rates_file() -> Path | None:
    """Where rates are kept; None if none are."""
    named = os.environ.get(SWITCH)
    if named is not None:
        return Path(named) if named else None
    return cache_directory() / NAME


def threads() -> int:
    """Of the processor, as far as the environment tells."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdecimal() and int(named) > 0 else len(os.sched_getaffinity(0))


@functools.cache
def machine() -> str:
    """The processor and the GPUs, as Linux names them; CUDA is not started for it."""
    names = [_first("/proc/cpuinfo", "model name"), str(os.cpu_count())]
    folder = Path("/proc/driver/nvidia/gpus")
    with contextlib.suppress(OSError):
        names += sorted(_first(str(path / "information"), "Model") for path in folder.iterdir())
    return ", ".join(filter(None, names))


def _first(path: str, key: str) -> str:
    """The first value of a key in a file of the kernel's; empty if there is none."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            name, colon, value = line.partition(":")
            if colon and name.strip() == key:
                return value.strip()
    return ""


def record(work: Work, seconds: float, *, probed: bool = False) -> None:
    """Add a line. A file that cannot be written is no reason for a run to fail."""
    path = rates_file()
    if path is None or work.amount <= 0 or seconds <= 0:
        return
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rate = Rate(work.kind, work.on, work.amount, round(seconds, 3), threads(), now, machine(), probed)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(rate)) + "\n")
        if path.stat().st_size > _LARGEST:
            kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[-_READ:]
            shorter = path.with_name(f"{path.name}.{os.getpid()}")
            shorter.write_text("".join(kept), encoding="utf-8")
            shorter.replace(path)


def known_rates() -> list[Rate]:
    """The latest rates; lines that cannot be read are left out."""
    path = rates_file()
    found: list[Rate] = []
    if path is None:
        return found
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in path.read_text(encoding="utf-8").splitlines()[-_READ:]:
            with contextlib.suppress(ValueError, TypeError):
                found.append(Rate(**json.loads(line)))
    return found


def expected(work: Work | None, rates: Sequence[Rate]) -> Expected | None:
    """How long work will take; None if nothing of its kind was done with as many threads."""
    if work is None or work.amount <= 0:
        return None
    alike = [rate for rate in rates if (rate.kind, rate.on) == (work.kind, work.on)]
    if work.on in ("cpu", "gpu"):
        alike = [rate for rate in alike if rate.machine == machine()]
    if work.on == "cpu":
        alike = [rate for rate in alike if rate.threads == threads()]
    # What was run says more than what was measured for a plan.
    alike = [rate for rate in alike if not rate.probed] or alike
    # Among equals the latest: sorting keeps their order.
    alike.reverse()
    alike.sort(key=lambda rate: abs(math.log(rate.amount / work.amount)))
    alike = alike[:_NEAREST]
    if not alike:
        return None
    each = median(rate.seconds / rate.amount for rate in alike)
    return Expected(each * work.amount, len(alike), alike[0].probed)
