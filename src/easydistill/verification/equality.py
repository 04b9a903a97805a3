"""Whether two answers are equal: exactly where that can be said at once, else by math-verify in processes of its own.

Enters: pairs of answers, (reference, candidate). Leaves: a `Verdict` a pair: equal, different, or undecided and why.

1. Equal text, marks aside (`$…$`, `**`, `\\text{}`, final stop, spaces), is equal. Words are compared without case. Of
   a choice that is written out, `C) Paris`, the letter is compared where the other side is one. A date is text.
2. Two numbers are compared as fractions: 0.30 = 3/10, 1,234 = 1234, and 0.333 ≠ 1/3. A percentage equals both what it
   is worth and its numeral (50 % = 0.5 and 50 % = 50), because only the question tells which was wanted. A unit is
   compared only where both sides have one; the same number of other units is undecided.
3. Words against a number are different; sentences and unbalanced braces are undecided.
4. What is left goes to math-verify (sympy), which rounds decimals to six places. Numbers in other notations, and below
   a thousandth, go there as integers or fractions: `1e3` would be three times Euler's number. Where sympy fails inside
   and goes on, for want of memory too, its answer is "different": a failure never makes two answers equal.

A comparison in sympy may hang, take all memory, or kill its process. So it runs in a worker (`_math_worker.py`) with
limited address space and input, reached through pipes, in a process group of its own. Past its time the group is killed
and replaced, and only that comparison is undecided. The caller needs no signals and no main thread; workers are started
without forking the caller's Python, so threads, CUDA and pytest do not mind. POSIX only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import re
import select
import signal
import subprocess
import sys
import threading
import time
import unicodedata
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal, cast

from easydistill.errors import EasyDistillError, MissingExtra
from easydistill.verification.numbers import VULGAR, Number, bare, parse_number

Outcome = Literal["equal", "different", "undecided"]
MAX_CHARACTERS = 2000
"""Longer answers are undecided. Both fit into a pipe's buffer, so that writing a request never blocks."""
_START_SECONDS = 120.0
_START_ATTEMPTS = 3
_USES = 2000
"""Comparisons after which a worker is replaced: sympy's caches only grow."""
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""All that workers inherit: no keys."""
_WORDS = re.compile(r"[A-Za-z]|[^\W\d_]{3,}(?:[ '’-][^\W\d_]+)*|[\u4e00-\u9fff]{1,20}")
"""A choice's letter, or a word or more: not `pi`, nor a product such as `ab`."""
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,} [A-Za-z]{2,} |[\u4e00-\u9fff]{5,}")
_CHOSEN = re.compile(r"\(?(?P<letter>[A-Z])(?:\)|[.:](?= )|：|、) ?(?P<said>\S.*)")
_OTHER_CHOICE = re.compile(r"(?<![A-Za-z])([B-H](?![A-Za-z])|A(?![A-Za-z]| [a-z])|[a-h]\)|\([a-h](?=\)))")
_DATE = re.compile(
    r"[12][0-9]{3}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
    r"|[12][0-9]{3}([/.])[0-9]{1,2}\1[0-9]{1,2}|[0-9]{1,2}([/.-])[0-9]{1,2}\2[12][0-9]{3}"
)


@dataclass(frozen=True)
class Verdict:
    """What came of one comparison."""

    outcome: Outcome
    by: Literal["text", "number", "math"]
    reason: str = ""
    """Why nothing could be decided."""

    @property
    def equal(self) -> bool:
        return self.outcome == "equal"


def compare_plainly(reference: str, candidate: str) -> Verdict | None:
    """Steps 1 to 3 of the module: what needs no algebra. None where algebra is needed. Pure."""
    if max(len(reference), len(candidate)) > MAX_CHARACTERS:
        return Verdict("undecided", "text", f"longer than {MAX_CHARACTERS} characters")
    # An umlaut may be one character or two.
    left, right = (bare(unicodedata.normalize("NFC", side)) for side in (reference, candidate))
    if not left or not right:
        return Verdict("undecided", "text", f"the {'candidate' if left else 'reference'} is empty")
    left, right = _choice(left), _choice(right)
    if len(left) == 1 or len(right) == 1:
        left, right = _chosen(reference, left, right), _chosen(candidate, right, left)
    if left == right:
        return Verdict("equal", "text")
    if _DATE.fullmatch(left) or _DATE.fullmatch(right):
        return Verdict("different", "text")
    words = [bool(_WORDS.fullmatch(side)) for side in (left, right)]
    if all(words):
        return Verdict("equal" if left.casefold() == right.casefold() else "different", "text")
    one, other = parse_number(reference), parse_number(candidate)
    if one is not None and other is not None:
        return _compare_numbers(one, other)
    if any(flag and len(side) > 1 for flag, side in zip(words, (left, right), strict=True)) and (
        one is not None or other is not None
    ):
        return Verdict("different", "text")
    for name, side, number in (("reference", left, one), ("candidate", right, other)):
        if number is None and _PROSE.search(side):
            return Verdict("undecided", "text", f"the {name} is a sentence")
        if not _balanced(side):
            return Verdict("undecided", "text", f"the braces of the {name} are not balanced")
    return None


def _balanced(text: str) -> bool:
    depth = 0
    for mark in re.findall(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(mark, 0)
        if depth < 0:
            return False
    return depth == 0


_SIGNS = str.maketrans(
    {"π": r"\pi ", "×": r"\times ", "÷": "/", "⁄": "/", "·": r"\cdot ", "−": "-", "≤": r"\le ", "≥": r"\ge "}
    | {sign: re.sub("(.+)⁄(.+)", r"\\frac{\1}{\2}", unicodedata.normalize("NFKC", sign)) for sign in VULGAR}
)
_ROOT = re.compile(r"(?:(?<![\\A-Za-z])sqrt|√) ?(?:\(([^()]*)\)|([0-9]+|[a-z]\b))")
_NAMES = re.compile(r"(?<![\\A-Za-z])(pi|sin|cos|tan|ln|log|exp)(?![A-Za-z])")
_SCIENTIFIC = re.compile(r"(?<![A-Za-z0-9_.\\])([0-9]++(?:\.[0-9]++)?|\.[0-9]++)[eE]([-+]?[0-9]++)(?![A-Za-z])")
_SUM = re.compile(r"(?!1e)[0-9]+e[-+][1-9][0-9]*")
"""`3e+5`, which may be three times Euler's number and five. Nobody writes `1e` for it."""
_EULER = re.compile(r"(?<![A-Za-z\\])e(?![A-Za-z])")
_DECIMAL = re.compile(r"[-+]?[0-9,]*\.[0-9]+")
_SMALL = Fraction(1, 1000)
"""Below it, six decimals are too few to tell numbers apart."""


def _as_latex(answer: str, other: str) -> str:
    """An answer as math-verify cannot misread it, beside another one.

    It may be typed plainly, such as `2*sqrt(3)` or `3π`: `pi` would be read as p times i.
    """
    text = bare(answer).translate(_SIGNS)
    by_euler = _EULER.search(_SCIENTIFIC.sub("", other)) is not None
    number = parse_number(answer)
    if number is not None and not number.percent and not number.unit and not (by_euler and _SUM.fullmatch(text)):
        value = number.value
        if not _DECIMAL.fullmatch(text) or abs(value) < _SMALL:
            top = f"{value.numerator}"
            return top if value.denominator == 1 else rf"\frac{{{top}}}{{{value.denominator}}}"

    def power(match: re.Match[str]) -> str:
        return match[0] if by_euler and _SUM.fullmatch(match[0]) else rf"{match[1]} \times 10^{{{match[2]}}}"

    latex = _ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2]}}}", _SCIENTIFIC.sub(power, text))
    return _NAMES.sub(r"\\\1 ", latex)


def _in_latex(reference: str, candidate: str) -> tuple[str, str]:
    return _as_latex(reference, candidate), _as_latex(candidate, reference)


def _choice(text: str) -> str:
    """`(B)`, `B)` and `option B` as `B`."""
    match = re.fullmatch(r"(?:[Oo]ption |[Cc]hoice )?\(?([A-Z])\)?", text)
    return match[1] if match else text


def _chosen(answer: str, text: str, beside: str) -> str:
    """`C) Paris` as `C`, beside a letter; but not where it goes on for lines or names another choice too."""
    match = _CHOSEN.fullmatch(text) if re.fullmatch("[A-Z]", beside) and "\n" not in answer.strip() else None
    return match["letter"] if match and not _OTHER_CHOICE.search(match["said"]) else text


def _compare_numbers(one: Number, other: Number) -> Verdict:
    readings = {one.value, one.numeral} & {other.value, other.numeral} if one.percent != other.percent else set()
    if one.value != other.value and not readings:
        return Verdict("different", "number")
    if one.unit and other.unit and one.unit != other.unit:
        return Verdict("undecided", "number", f"the same number of other units: {one.unit!r} and {other.unit!r}")
    return Verdict("equal", "number")


class _Died(Exception):
    """A worker ended, or was ended, before it answered."""


class _Worker:
    """One process. Used by one thread at a time."""

    def __init__(self, seconds: float, memory: int) -> None:
        self.uses = 0
        self._unread = b""
        script = Path(__file__).with_name("_math_worker.py")
        self._process = subprocess.Popen(
            # -P: the folder of this package must not shadow anyone's modules.
            [sys.executable, "-P", str(script), str(seconds), str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )

    def hello(self) -> None:
        """Wait until it is ready.

        Raises:
            _Died: it ended, or is not ready in time.
            MissingExtra: math-verify cannot be imported.
        """
        state, *detail = self._read(_START_SECONDS)
        if state == "missing":
            raise MissingExtra("synth", f"Comparing answers by mathematics ({detail[0]})")

    def ask(self, reference: str, candidate: str, seconds: float) -> tuple[str, str]:
        self.uses += 1
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([reference, candidate]).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise _Died("its process ended: out of memory, out of CPU time, or killed") from None
        outcome, reason = self._read(seconds)
        return outcome, reason

    def _read(self, seconds: float) -> list[str]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0:
                raise _Died(f"no answer within {seconds:g} seconds")
            if poll.poll(left * 1000):
                piece = os.read(descriptor, 65536)
                if not piece:
                    raise _Died("its process ended: out of memory, out of CPU time, or killed")
                self._unread += piece
        line, self._unread = self._unread.split(b"\n", 1)
        reply: list[str] = json.loads(line)
        return reply

    def kill(self) -> None:
        """End it and all its descendants. May be called by any thread; one that waits for an answer is told."""
        # Until it has been waited for, its id, and so its group's, is nobody else's.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def remove(self) -> None:
        """End it and leave nothing behind. Only where no other thread reads from it. May be called twice."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _remove_all(workers: set[_Worker]) -> None:
    for worker in list(workers):
        worker.remove()
    workers.clear()


class Verifier:
    """Compares answers, with a few worker processes that start when they are first needed.

    Any number of threads may use it. Close it, or use it as a context manager; left alone, it closes with the program.

    Args:
        workers: most comparisons by mathematics at a time.
        seconds: wall-clock time one of them may take.
        memory: bytes of address space of each worker; importing sympy takes 70 MB of it.

    Raises:
        MissingExtra: math-verify is not installed.
    """

    def __init__(self, workers: int = 2, seconds: float = 5.0, memory: int = 1 << 30) -> None:
        if workers < 1 or seconds <= 0:
            raise ValueError("a verifier needs at least one worker and more than no time")
        if importlib.util.find_spec("math_verify") is None:
            raise MissingExtra("synth", "Comparing answers by mathematics")
        self.workers, self.seconds, self.memory = workers, seconds, memory
        self.replaced = 0
        """Workers that hung or died."""
        self._owner = os.getpid()
        self._closed = False
        self._lock = threading.Lock()
        self._slots: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(workers):
            self._slots.put(None)
        self._live: set[_Worker] = set()
        self._finalizer = weakref.finalize(self, _remove_all, self._live)

    def verify(self, reference: str, candidate: str) -> Verdict:
        """Compare one pair. Not symmetric where math-verify is not: an equation `x = 5` may be answered by 5.

        Raises:
            EasyDistillError: workers do not even start.
        """
        plain = compare_plainly(reference, candidate)
        return plain if plain is not None else self._by_mathematics(*_in_latex(reference, candidate))

    def verify_many(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]:
        """Compare many pairs, equal pairs once, in their order, with all workers at work."""
        pairs = list(pairs)
        verdicts = {pair: compare_plainly(*pair) for pair in dict.fromkeys(pairs)}
        hard = [pair for pair, verdict in verdicts.items() if verdict is None]
        pool = ThreadPoolExecutor(self.workers, "verify") if hard else None
        try:
            if pool is not None:
                verdicts.update(
                    zip(hard, pool.map(lambda pair: self._by_mathematics(*_in_latex(*pair)), hard), strict=True)
                )
        finally:
            if pool is not None:
                pool.shutdown(cancel_futures=True)
        found = [verdicts[pair] for pair in pairs]
        assert all(verdict is not None for verdict in found)
        return [verdict for verdict in found if verdict is not None]

    def _by_mathematics(self, reference: str, candidate: str) -> Verdict:
        if os.getpid() != self._owner:
            raise RuntimeError("this verifier belongs to the process that made it; make another one after a fork")
        worker = self._slots.get()
        try:
            if self._closed:
                raise RuntimeError("this verifier is closed")
            worker = worker or self._start()
            outcome, reason = worker.ask(reference, candidate, self.seconds)
        except _Died as death:
            assert worker is not None
            self._drop(worker)
            worker, self.replaced = None, self.replaced + 1
            return Verdict("undecided", "math", str(death))
        except BaseException:
            # Interrupted between question and answer: the answer must not be taken for the next one's.
            if worker is not None:
                self._drop(worker)
            worker = None
            raise
        else:
            if worker.uses >= _USES or reason == "out of memory":
                self._drop(worker)
                worker = None
        finally:
            self._slots.put(worker)
        return Verdict(cast(Outcome, outcome), "math", reason)

    def _start(self) -> _Worker:
        why = ""
        for _ in range(_START_ATTEMPTS):
            worker = _Worker(self.seconds, self.memory)
            with self._lock:
                self._live.add(worker)
            try:
                worker.hello()
                return worker
            except _Died as death:
                why = str(death)
                self._drop(worker)
            except BaseException:
                self._drop(worker)
                raise
        raise EasyDistillError(
            f"the process that compares answers does not start: {why}\n"
            f"    → try `{sys.executable} -c 'import math_verify'`, and give it more than {self.memory >> 20} MB"
        )

    def _drop(self, worker: _Worker) -> None:
        worker.remove()
        with self._lock:
            self._live.discard(worker)

    def close(self) -> None:
        """End all workers. Comparisons that are under way in other threads come out undecided, later ones raise."""
        if os.getpid() != self._owner:
            return
        self._closed = True
        with self._lock:
            live = list(self._live)
        for worker in live:
            worker.kill()
        # Whoever was waiting for an answer gives the slot back now, and then no thread reads from any pipe.
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
    """Compare many (reference, candidate) pairs, in their order, with a `Verifier` for just these."""
    with Verifier(workers, seconds) as verifier:
        return verifier.verify_many(pairs)
