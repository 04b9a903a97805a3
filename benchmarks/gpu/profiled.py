"""Where the time of one training step goes on the GPU: kernels by their time, and how long the device stood idle.

The work of `training`'s part `same`, two steps of each side under PyTorch's profiler.

    python -m benchmarks.gpu.run --parts profiled
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from benchmarks.gpu.training_sides import HALF_B, TINY, made_rows, ours

from easydistill.methods.shared.watch import Watch

SKIPPED, KEPT, SHOWN = 4, 2, 40


def measure(budget_seconds: float, tiny: bool = False) -> dict[str, Any]:
    """Each side's kernels, while the budget lasts."""
    ends = time.monotonic() + budget_seconds
    shape = TINY if tiny else HALF_B
    batch, length = (2, 32) if tiny else (8, 1024)
    rows = made_rows([length] * batch * (SKIPPED + KEPT + 1), shape.vocabulary)
    fixed: dict[str, Any] = {"per_device_train_batch_size": batch, "max_length": length}
    sides: dict[str, Callable[[], Any]] = {}
    if not tiny:
        sides["sft_compiled"] = lambda: ours(shape, rows, **fixed, compile=True)
        sides["kd_compiled"] = lambda: ours(shape, rows, distil=True, **fixed, compile=True)
    sides["sft"] = lambda: ours(shape, rows, **fixed)
    sides["kd"] = lambda: ours(shape, rows, distil=True, **fixed)
    return {name: profiled(side) for name, side in sides.items() if time.monotonic() < ends}


def profiled(side: Callable[[], Any]) -> dict[str, Any]:
    """Kernels of `KEPT` steps: ms and calls a step, longest first."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    profiler = torch.profiler.profile(activities=activities)
    seen: dict[str, float] = {}
    end = Watch.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step == SKIPPED:
            _settle()
            profiler.start()
            seen["from"] = time.perf_counter()
        elif state.global_step == SKIPPED + KEPT:
            _settle()
            seen["to"] = time.perf_counter()
            profiler.stop()
        return end(self, args, state, control, **kwargs)

    with mock.patch.object(Watch, "on_step_end", on_step_end):
        side()
    # Ranges of the host are drawn on the device too; they are no kernels. Triton's kernels have names of ranges.
    ranges = {event.name for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CPU}
    kernels = [
        event
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and (event.name not in ranges or event.name.startswith("triton_"))
    ]
    by_name: dict[str, list[float]] = {}
    for event in kernels:
        by_name.setdefault(event.name[:110], []).append(event.time_range.elapsed_us() / 1000)
    order = sorted(by_name.items(), key=lambda item: -sum(item[1]))
    return {
        "ms_a_step_under_the_profiler": round(1000 * (seen["to"] - seen["from"]) / KEPT, 2),
        "busy_ms_a_step": round(sum(map(sum, by_name.values())) / KEPT, 2),
        "kernels_a_step": round(len(kernels) / KEPT),
        "host_ms_a_step": {
            event.key: [round(event.self_cpu_time_total / 1000 / KEPT, 2), round(event.count / KEPT, 1)]
            for event in sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)[:25]
        },
        "ms_and_calls_a_step": {
            name: [round(sum(times) / KEPT, 3), round(len(times) / KEPT, 1)] for name, times in order[:SHOWN]
        },
    }


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
