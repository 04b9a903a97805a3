"""Training steps on one GPU, beside TRL's: seconds, tokens a second and peak memory.

The work: random weights at the shape of Qwen2.5-0.5B, V = 151,936, 8 × 1,024 random tokens, 60 % of them learned;
float32 weights, bfloat16 autocast, fused AdamW. Ours run through the product's own `train`, TRL's through its trainers.
Sides alternate, every second round in the opposite order; each builds its own model, and the first steps are left out.

    same            SFT and distillation (64 listed tokens a row, as `threshold` stores them), plain and compiled;
                    SFTTrainer, with Liger where it is installed
    beside_teacher  batch 4: distillation from signals; TRL's GKDTrainer with a 1.5B-shape teacher in memory
    larger          the shape of Qwen2.5-1.5B
    packed          rows of log-normal lengths, 64–4,096, packed to 4,096: ours by tokens, TRL's packing

    python -m benchmarks.gpu.run --parts training
"""

from __future__ import annotations

import gc
import importlib.util
import os
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.common import spread
from benchmarks.gpu.training_sides import (
    HALF_B,
    LISTED,
    NOTES,
    ONE_AND_A_HALF_B,
    SEED,
    TINY,
    log_normal,
    made_rows,
    ours,
    trl_gkd,
    trl_sft,
)

WARM_UP, STEPS = 3, 6
SIDES = "EASYDISTILL_BENCH_SIDES"
"""Environment variable: comparisons or sides to run alone, as `same` or `same.kd,larger`."""


def measured(run: Callable[[], list[float]]) -> dict[str, Any]:
    """Seconds of the steps after the first ones, and the peak of memory (in use, and held); or why there are none."""
    started = time.monotonic()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        seconds = run()
    # A peer's version, or a card that is too small: the other sides are still worth measuring.
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    else:
        # Of the whole process so far.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    reserved = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else peak
    kept = seconds[min(WARM_UP, len(seconds) - 1) :]
    whole = round(time.monotonic() - started, 1)
    found = {"seconds": kept, "steps": len(seconds), "whole_seconds": whole}
    return {**found, "peak_gib": round(peak / 2**30, 2), "reserved_gib": round(reserved / 2**30, 2)}


def compared(
    sides: dict[str, Callable[[], list[float]]], tokens: Callable[[int], float], rounds: int, ends: float
) -> dict[str, Any]:
    """Sides in turn, as many rounds as there is time for.

    Args:
        tokens: of a step, by the number of steps.
        ends: the time after which no further run begins.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    longest = 0.0
    for number in range(rounds):
        for name in sides if number % 2 == 0 else reversed(sides):
            if time.monotonic() + longest < ends and not any("failed" in run for run in runs[name]):
                started = time.monotonic()
                runs[name].append(measured(sides[name]))
                longest = max(longest, time.monotonic() - started)
    return {name: summed(found, tokens) for name, found in runs.items()}


def summed(runs: list[dict[str, Any]], tokens: Callable[[int], float]) -> dict[str, Any]:
    if failed := next((run for run in runs if "failed" in run), None):
        return failed
    if not runs:
        return {"skipped": "no time was left"}
    seconds = [second for run in runs for second in run["seconds"]]
    found = spread(seconds)
    rate = tokens(runs[0]["steps"]) / found["median"]
    return {
        "seconds_per_step": found,
        "tokens_per_second": round(rate),
        "peak_gib": max(run["peak_gib"] for run in runs),
        "reserved_gib": max(run["reserved_gib"] for run in runs),
        "whole_seconds": [run["whole_seconds"] for run in runs],
    }


def missing(*modules: str) -> str | None:
    """Why a side is left out: what it needs is not installed."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def measure(budget_seconds: float, tiny: bool = False) -> dict[str, Any]:
    """All comparisons, within about the budget."""
    started = time.monotonic()
    small, large = (TINY, TINY) if tiny else (HALF_B, ONE_AND_A_HALF_B)
    steps, rounds = (3, 1) if tiny else (WARM_UP + STEPS, 3)
    batch, length = (2, 32) if tiny else (8, 1024)
    rows = made_rows([length] * batch * steps, small.vocabulary)
    few = rows[: len(rows) // 2]
    fixed = {"per_device_train_batch_size": batch, "max_length": length}
    half = {**fixed, "per_device_train_batch_size": batch // 2}
    longest = 4 * length
    mixed = made_rows(log_normal(batch * steps, length // 16, longest), small.vocabulary)
    by_tokens = {"packing": True, "max_length": longest, "max_tokens_per_batch": 2 * longest}
    mixed_tokens = sum(len(ids) for ids, _ in mixed)
    no_trl, no_liger = missing("trl", "datasets"), missing("liger_kernel")
    # Compiling takes longer than all the rest of a smoke test.
    skip_compiling = "not in the smoke test" if tiny else None
    wanted = [one for one in os.environ.get(SIDES, "").split(",") if one]
    every: dict[str, dict[str, tuple[Callable[[], list[float]], str | None]]] = {
        "same": {
            "sft_compiled": (lambda: ours(small, rows, **fixed, compile=True), skip_compiling),
            "trl_sft": (lambda: trl_sft(small, rows, batch), no_trl),
            "kd_compiled": (lambda: ours(small, rows, distil=True, **fixed, compile=True), skip_compiling),
            "trl_sft_liger": (lambda: trl_sft(small, rows, batch, liger=True), no_trl or no_liger),
            "sft": (lambda: ours(small, rows, **fixed), None),
            "kd": (lambda: ours(small, rows, distil=True, **fixed), None),
        },
        "beside_teacher": {
            "kd_compiled": (lambda: ours(small, few, distil=True, **half, compile=True), skip_compiling),
            "trl_gkd": (lambda: trl_gkd(small, large, few, batch // 2), no_trl),
            "kd": (lambda: ours(small, few, distil=True, **half), None),
            "trl_distillation": (list, "its steps generate what they train on, so it does not do the same work"),
        },
        "larger": {
            "sft_compiled": (lambda: ours(large, rows, **fixed, compile=True), skip_compiling),
            "trl_sft": (lambda: trl_sft(large, rows, batch), no_trl),
            "sft": (lambda: ours(large, rows, **fixed), None),
            "trl_sft_liger": (lambda: trl_sft(large, rows, batch, liger=True), no_trl or no_liger),
        },
        "packed": {
            "sft_compiled": (lambda: ours(small, mixed, **by_tokens, compile=True), skip_compiling),
            "trl_sft": (lambda: trl_sft(small, mixed, 2, packing=True), no_trl),
            "sft": (lambda: ours(small, mixed, **by_tokens), None),
            "sft_rows": (lambda: ours(small, mixed, **fixed | {"max_length": longest}, group_by_length=True), None),
        },
    }
    tokens = {"same": batch * length, "beside_teacher": batch // 2 * length, "larger": batch * length}
    shares = {"same": 0.45, "beside_teacher": 0.6, "larger": 0.85, "packed": 1.0}
    found: dict[str, Any] = {"seed": SEED, "rows": batch, "length": length, "listed_tokens": LISTED}
    for part, sides in every.items():
        # A packed step has other rows on each side: what counts is the tokens of all steps over their time.
        per_step = (
            (lambda count, part=part: tokens[part]) if part in tokens else (lambda n: mixed_tokens / (n + WARM_UP))
        )
        runnable = {name: run for name, (run, reason) in sides.items() if reason is None}
        if wanted and not any(one.startswith(part) for one in wanted):
            continue
        if chosen := {name: run for name, run in runnable.items() if f"{part}.{name}" in wanted}:
            runnable = chosen
        results = compared(runnable, per_step, rounds, started + shares[part] * budget_seconds)
        found[part] = {name: results.get(name, {"skipped": reason}) for name, (_, reason) in sides.items()}
    return {**found, "notes": sorted(set(NOTES))}
