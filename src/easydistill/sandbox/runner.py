"""The entry points: run one program, or many with a bounded number at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from .execution import RunResult, execute
from .probe import strictest_isolation
from .spec import Limits

_DEFAULT_LIMITS = Limits()


def run_program(source: str, *, stdin: str = "", limits: Limits = _DEFAULT_LIMITS) -> RunResult:
    """Run a program and wait for its end. Whatever the program does, this raises nothing because of it.

    Raises:
        SandboxError: programs cannot be run on this machine.
    """
    return execute(strictest_isolation(), source, stdin, limits)


class Sandbox:
    """Runs a bounded number of programs at a time. Any number of threads may share it; idle, it holds no resources.

    Args:
        workers: programs that run at the same time.
        limits: of each program.
    """

    def __init__(self, workers: int = 2, limits: Limits = _DEFAULT_LIMITS) -> None:
        if workers < 1:
            raise ValueError(f"a sandbox needs at least one worker, not {workers}")
        self.workers, self.limits = workers, limits
        self._slots = threading.BoundedSemaphore(workers)

    def run(self, source: str, *, stdin: str = "") -> RunResult:
        """`run_program`, once a worker is free."""
        with self._slots:
            return run_program(source, stdin=stdin, limits=self.limits)

    def run_many(self, programs: Iterable[tuple[str, str]]) -> list[RunResult]:
        """Run many (source, stdin) pairs. The results are in the same order."""
        pool = ThreadPoolExecutor(self.workers, "sandbox")
        try:
            return list(pool.map(lambda program: self.run(program[0], stdin=program[1]), programs))
        finally:
            pool.shutdown(cancel_futures=True)
