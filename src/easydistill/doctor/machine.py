"""Processors, memory, disk and the accelerator, and what does not fit together among them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easydistill.doctor.finding import Finding
from easydistill.doctor.installed import is_installed

SECTION = "machine"
GIB = 2**30
FEW_CORES = 4
BUSY = 0.5
"""Share of the cores that other work takes, from which measurements mean little."""
LITTLE_MEMORY = 8 * GIB
LITTLE_DISK = 20 * GIB
"""A 0.5B student with its checkpoints and a teacher of some billion parameters take about this much."""


def machine() -> Iterator[Finding]:
    """What this machine has."""
    yield _cores()
    yield _memory()
    yield _disk()
    yield _cache()
    if is_installed("torch"):
        yield from _devices()


def usable_cores() -> int:
    """Cores that this process may use: a container or a scheduler may allow fewer than the machine has."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return allowed


def _cores() -> Finding:
    cores = usable_cores()
    busy = os.getloadavg()[0]
    state, good = f"{cores} usable", cores >= FEW_CORES
    if not good:
        state += ": few; tokenising, and models on the CPU, will be slow"
    if busy > BUSY * cores:
        state += f"; busy with other work (load {busy:.1f}), so everything measured now is too slow"
    return Finding(SECTION, "cores", state, good and busy <= BUSY * cores, {"cores": cores, "load": busy})


def _memory() -> Finding:
    total, free = memory_bytes()
    state, good = f"{total / GIB:.0f} GiB", total >= LITTLE_MEMORY
    if free is not None:
        state += f", {free / GIB:.0f} free"
    if not good:
        state += ": little; full fine-tuning takes 16 bytes a parameter, LoRA 2 to 4"
    return Finding(SECTION, "memory", state, good, {"total_bytes": total, "free_bytes": free})


def memory_bytes() -> tuple[int, int | None]:
    """(all, free); a container's limit counts as all."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError, StopIteration):
        pass
    return total, None if free is None else min(free, total)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    state, good = f"{free / GIB:.0f} GiB free in this directory", free >= LITTLE_DISK
    if not good:
        state += ": little for checkpoints (12 bytes a parameter each) and weights"
    return Finding(SECTION, "disk", state, good, {"free_bytes": free})


def hub_cache() -> Path:
    """Where models of the hub are kept; the rule is huggingface_hub's."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _cache() -> Finding:
    folder = hub_cache()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    good = os.access(place, os.W_OK)
    state = f"{folder} {'is writable' if good else f'cannot be written ({place})'}"
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    if not good:
        state += ": set HF_HOME"
    elif offline:
        state += "; HF_HUB_OFFLINE is set, so only what is there can be used"
    return Finding(SECTION, "hub cache", state, good, {"offline": offline})


def _devices() -> Iterator[Finding]:
    import torch

    from easydistill.models.loading import computes_well_in_bf16, device

    on = device()
    numbers = "bfloat16" if computes_well_in_bf16(on) else "float32"
    values: dict[str, Any] = {"type": on.type, "computes_in": numbers}
    state = f"{on.type}, computes in {numbers}"
    if on.type == "cuda":
        about = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        values["gpus"] = [{"name": gpu.name, "bytes": gpu.total_memory} for gpu in about]
        state += "; " + ", ".join(f"{gpu.name} with {gpu.total_memory / GIB:.0f} GiB" for gpu in about)
    yield Finding(SECTION, "device", state, values=values)
    for name, problem in misfits(on.type, numbers):
        yield Finding(SECTION, name, problem, good=False)


def misfits(kind: str, numbers: str) -> Iterator[tuple[str, str]]:
    """(what, why) of parts that do not fit together, on a device of this kind that computes in these numbers."""
    import torch

    if kind == "cuda":
        if numbers == "float32":
            yield "bfloat16", "this GPU only emulates it: float32 takes twice the memory; half a size of model fits"
        if not is_installed("triton"):
            yield "triton", "missing: our GPU kernels and torch.compile cannot be used  (pip install triton)"
        if not is_installed("vllm"):
            yield "vllm", "missing: teachers on this GPU answer several times faster with it"
        return
    if torch.version.cuda is not None:
        why = "no GPU is found: check the driver (nvidia-smi), or CUDA_VISIBLE_DEVICES"
        yield "torch", f"built for CUDA {torch.version.cuda}, but {why}"
    elif Path("/dev/nvidia0").exists():
        yield "torch", "a build for CPUs, but there is an NVIDIA GPU: install a build for CUDA"
    if kind == "cpu" and torch.get_num_threads() > usable_cores():
        threads = f"{torch.get_num_threads()} threads on {usable_cores()} cores"
        yield "threads", f"torch uses {threads}, which slows it down: set OMP_NUM_THREADS={usable_cores()}"
