"""Timing of work on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

MOST = 200
"""Repetitions; more of them say nothing new."""


def seconds_of(work: Callable[[], Any], budget: float) -> float:
    """Median seconds of one call, within a budget of seconds; at least one call after one to warm up."""
    _finished(work)
    ends = time.perf_counter() + budget
    taken: list[float] = []
    while not taken or (time.perf_counter() + taken[-1] < ends and len(taken) < MOST):
        started = time.perf_counter()
        _finished(work)
        taken.append(time.perf_counter() - started)
    return median(taken)


def _finished(work: Callable[[], Any]) -> None:
    work()
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()
