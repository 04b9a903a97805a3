"""Where the seconds of training by own answers go: generation, scores, updates, and what is between them.

Phases may be inside one another; each second counts once, for the innermost. Only `metrics.jsonl` and the report have
them: nothing that is learned depends on a clock.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Literal

import torch

Phase = Literal["rollouts", "weights", "teacher", "rewards", "scores", "update", "heldout"]
"""Generating answers; handing the student's weights to the engine that does; the teacher's scores; rewards; other
scores of answers (log-probabilities, values); gradients and the optimiser's step; measuring held-out prompts."""
REST = "other"
"""Seconds of no phase: the accelerator waits."""


class Phases:
    """A stopwatch with one hand for each phase."""

    def __init__(self, on: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self._on, self._clock = on, clock
        self._open: list[str] = [REST]
        self._at = clock()
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def during(self, name: Phase) -> Iterator[None]:
        """Count the seconds inside for a phase."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def begin(self) -> None:
        """Forget everything so far: training starts now."""
        self._turn()
        self._seconds = {}

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call, and the rest; together the time that has passed."""
        self._turn()
        found, self._seconds = self._seconds, {}
        return {name: round(seconds, 4) for name, seconds in {REST: 0.0, **found}.items()}

    def _turn(self) -> None:
        """Book the time since the last change for the phase that is open."""
        if self._on.type == "cuda":
            # Else the seconds of a phase would be those in which its kernels were launched.
            torch.cuda.synchronize(self._on)
        now = self._clock()
        self._seconds[self._open[-1]] = self._seconds.get(self._open[-1], 0.0) + now - self._at
        self._at = now
