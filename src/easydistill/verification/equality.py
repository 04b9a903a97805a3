"""Whether two answers are equal: decided exactly where possible, otherwise by math-verify in separate processes.

Input: pairs of answers, (reference, candidate). Output: a `Verdict` per pair: equal, different, or undecided and why.

The first three steps are in `plain.py`:

1. Equal text is equal, ignoring markup (`$…$`, `**`, `\\text{}`, final full stop, spaces). Words, also `TF` and `no`,
   and lists of words are compared case-insensitively, chemical formulas as they are. If one side is the letter of a
   choice, only the letter of a choice that is written out, `C) Paris`, is compared. A date is text.
2. Two numbers are compared as fractions: 0.30 = 3/10, 1,234 = 1234, and 0.333 ≠ 1/3. A percentage equals both its value
   and its numeral (50 % = 0.5 and 50 % = 50), because only the question shows which was meant. Units are compared only
   if both sides have one; the same number with different units is undecided. A numeral that states its base (`101_2`,
   `0x1F`) is compared by its value.
3. A word and a number are different; sentences and unbalanced braces are undecided.
4. The rest goes to math-verify (sympy). Decimals are compared with six places, and below a thousandth with the
   relative precision that six places have there; all else is compared exactly, however small (`_math_worker.py`).
   Numbers in other notations, and below a thousandth, are passed as integers or fractions, because `1e3` would be three
   times Euler's number. If sympy fails internally and continues, for lack of memory for example, its answer is
   "different": a failure never makes two answers equal. Intervals, inequalities and equations are asked both ways: an
   interval equals its inequality; where the two ways differ (`x^2+y^2=4` and 4), the verdict is undecided.

A comparison in sympy may hang, exhaust the memory, or crash its process. It therefore runs in a worker process
(`_math_worker.py`) with limits on address space and input. When its time is up the process group is killed and
replaced, and only that comparison is undecided. The caller needs no signals and no main thread. POSIX only.
"""

from __future__ import annotations

import importlib.util
import os
import queue
import sys
import threading
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import cast

from easydistill.errors import EasyDistillError, MissingExtra
from easydistill.verification._latex import latex_pair
from easydistill.verification._math_process import MathProcess, ProcessDied
from easydistill.verification.plain import Outcome, Verdict, compare_plainly

_START_ATTEMPTS = 3
_MAX_USES = 2000
"""Comparisons after which a worker is replaced, because sympy's caches only grow."""


def _remove_all(workers: set[MathProcess]) -> None:
    for worker in list(workers):
        worker.remove()
    workers.clear()


class Verifier:
    """Compares answers, with a few worker processes that start when they are first needed.

    Any number of threads may use it. Close it, or use it as a context manager; otherwise it is closed when the program
    ends.

    Args:
        workers: maximum number of comparisons by algebra at the same time.
        seconds: maximum wall-clock time of each.
        memory: bytes of address space of each worker; importing sympy takes 70 MB of it.

    Raises:
        MissingExtra: math-verify is not installed.
    """

    def __init__(self, workers: int = 2, seconds: float = 5.0, memory: int = 1 << 30) -> None:
        if workers < 1 or seconds <= 0:
            raise ValueError("a verifier needs at least one worker and a positive time limit")
        if importlib.util.find_spec("math_verify") is None:
            raise MissingExtra("synth", "Comparing answers by algebra")
        self.workers, self.seconds, self.memory = workers, seconds, memory
        self.replaced = 0
        """Number of workers that hung or died."""
        self._owner = os.getpid()
        self._closed = False
        self._lock = threading.Lock()
        self._slots: queue.LifoQueue[MathProcess | None] = queue.LifoQueue()
        for _ in range(workers):
            self._slots.put(None)
        self._live: set[MathProcess] = set()
        self._finalizer = weakref.finalize(self, _remove_all, self._live)

    def verify(self, reference: str, candidate: str) -> Verdict:
        """Compare one pair; the same whichever of the two is the reference. `x = 5` is equal to 5.

        Raises:
            EasyDistillError: the workers do not start.
        """
        plain = compare_plainly(reference, candidate)
        return plain if plain is not None else self._by_algebra(*latex_pair(reference, candidate))

    def verify_many(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]:
        """Compare many pairs with all workers, identical pairs only once. The verdicts are in the same order."""
        pairs = list(pairs)
        verdicts = {pair: compare_plainly(*pair) for pair in dict.fromkeys(pairs)}
        hard = [pair for pair, verdict in verdicts.items() if verdict is None]
        pool = ThreadPoolExecutor(self.workers, "verify") if hard else None
        try:
            if pool is not None:
                verdicts.update(
                    zip(hard, pool.map(lambda pair: self._by_algebra(*latex_pair(*pair)), hard), strict=True)
                )
        finally:
            if pool is not None:
                pool.shutdown(cancel_futures=True)
        found = [verdicts[pair] for pair in pairs]
        assert all(verdict is not None for verdict in found)
        return [verdict for verdict in found if verdict is not None]

    def _by_algebra(self, reference: str, candidate: str) -> Verdict:
        if os.getpid() != self._owner:
            raise RuntimeError("this verifier belongs to the process that created it; create another one after a fork")
        worker = self._slots.get()
        try:
            if self._closed:
                raise RuntimeError("this verifier is closed")
            worker = worker or self._start()
            outcome, reason = worker.compare(reference, candidate, self.seconds)
        except ProcessDied as death:
            assert worker is not None
            self._drop(worker)
            worker, self.replaced = None, self.replaced + 1
            return Verdict("undecided", "math", str(death))
        except BaseException:
            # Interrupted between request and answer: the answer must not be taken for that of the next request.
            if worker is not None:
                self._drop(worker)
            worker = None
            raise
        else:
            if worker.uses >= _MAX_USES or reason == "out of memory":
                self._drop(worker)
                worker = None
        finally:
            self._slots.put(worker)
        return Verdict(cast(Outcome, outcome), "math", reason)

    def _start(self) -> MathProcess:
        reason = ""
        for _ in range(_START_ATTEMPTS):
            worker = MathProcess(self.seconds, self.memory)
            with self._lock:
                self._live.add(worker)
            try:
                worker.wait_until_ready()
                return worker
            except ProcessDied as death:
                reason = str(death)
                self._drop(worker)
            except BaseException:
                self._drop(worker)
                raise
        raise EasyDistillError(
            f"the process that compares answers does not start: {reason}\n"
            f"    → try `{sys.executable} -c 'import math_verify'`, and give it more than {self.memory >> 20} MB"
        )

    def _drop(self, worker: MathProcess) -> None:
        worker.remove()
        with self._lock:
            self._live.discard(worker)

    def close(self) -> None:
        """End all workers. Comparisons in progress in other threads become undecided; later ones raise RuntimeError."""
        if os.getpid() != self._owner:
            return
        self._closed = True
        with self._lock:
            live = list(self._live)
        for worker in live:
            worker.kill()
        # Threads that waited for an answer return their slots now, and then no thread reads from any pipe.
        for _ in range(self.workers):
            self._slots.get()
        self._finalizer()
        for _ in range(self.workers):
            self._slots.put(None)

    def __enter__(self) -> Verifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def verify_many(pairs: Iterable[tuple[str, str]], *, workers: int = 2, seconds: float = 5.0) -> list[Verdict]:
    """`Verifier.verify_many` with a temporary `Verifier`."""
    with Verifier(workers, seconds) as verifier:
        return verifier.verify_many(pairs)
