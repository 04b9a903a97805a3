"""Whether two answers are equal: decided exactly where possible, otherwise by math-verify in separate processes.

Input: pairs of answers, (reference, candidate). Output: a `Verdict` per pair: equal, different, or undecided and why.

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
import re
import sys
import threading
import unicodedata
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, cast

from easydistill.errors import EasyDistillError, MissingExtra
from easydistill.verification._latex import latex_pair
from easydistill.verification._math_process import MathProcess, ProcessDied
from easydistill.verification._notations import Based, based, compare_names, is_word
from easydistill.verification.numbers import Number, bare, parse_number

Outcome = Literal["equal", "different", "undecided"]
MAX_CHARACTERS = 2000
"""Longer answers are undecided. Two of this length fit into a pipe's buffer, so writing a request never blocks."""
_START_ATTEMPTS = 3
_MAX_USES = 2000
"""Comparisons after which a worker is replaced, because sympy's caches only grow."""
_WORDS = re.compile(r"[A-Za-z]|[^\W\d_]{3,}(?:[ '’-][^\W\d_]+)*|[\u4e00-\u9fff]{1,20}")
"""The letter of a choice, or words; but neither `pi` nor a product such as `ab`. Shorter words: `is_word`."""
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,} [A-Za-z]{2,} |[\u4e00-\u9fff]{5,}")
_PAIR = re.compile(r"\([^()]+,[^()]+\)")
_CHOSEN = re.compile(r"\(?(?P<letter>[A-Z])(?:\)|[.:](?= )|：|、) ?(?P<said>\S.*)")
_OTHER_CHOICE = re.compile(r"(?<![A-Za-z])([B-H](?![A-Za-z])|A(?![A-Za-z]| [a-z])|[a-h]\)|\([a-h](?=\)))")
_DATE = re.compile(
    r"[12][0-9]{3}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
    r"|[12][0-9]{3}([/.])[0-9]{1,2}\1[0-9]{1,2}|[0-9]{1,2}([/.-])[0-9]{1,2}\2[12][0-9]{3}"
)


@dataclass(frozen=True)
class Verdict:
    """The result of one comparison."""

    outcome: Outcome
    by: Literal["text", "number", "math"]
    reason: str = ""
    """Why it is undecided; empty otherwise."""

    @property
    def equal(self) -> bool:
        return self.outcome == "equal"


def compare_plainly(reference: str, candidate: str) -> Verdict | None:
    """Steps 1 to 3 above, which need no algebra. None if algebra is needed. Pure."""
    if max(len(reference), len(candidate)) > MAX_CHARACTERS:
        return Verdict("undecided", "text", f"longer than {MAX_CHARACTERS} characters")
    # An umlaut may be one code point or two.
    left, right = (bare(unicodedata.normalize("NFC", side)) for side in (reference, candidate))
    if not left or not right:
        return Verdict("undecided", "text", f"the {'candidate' if left else 'reference'} is empty")
    left, right = _choice(left), _choice(right)
    if len(left) == 1 or len(right) == 1:
        left, right = _chosen(reference, left, right), _chosen(candidate, right, left)
    found = _compare_bases(left, right) or _compare_texts(left, right)
    return found or _compare_others(left, right, parse_number(reference), parse_number(candidate))


def _compare_texts(left: str, right: str) -> Verdict | None:
    """Equal texts, dates and words; None if the answers are anything else."""
    if left == right:
        return Verdict("equal", "text")
    if _DATE.fullmatch(left) or _DATE.fullmatch(right):
        return Verdict("different", "text")
    if _are_words(left, right):
        return Verdict("equal" if left.casefold() == right.casefold() else "different", "text")
    if (names := compare_names(left, right)) is not None:
        return Verdict(names, "text", "the same words in another order" if names == "undecided" else "")
    if {left[:2], right[:2]} >= {r"\{"} and any(_PAIR.fullmatch(side) for side in (left, right)):
        return Verdict("undecided", "text", "one is a set, the other a pair or an interval")
    return None


def _are_words(left: str, right: str) -> bool:
    if all(_WORDS.fullmatch(side) or is_word(side) for side in (left, right)):
        return True
    return (is_word(left) or is_word(right)) and left.isalpha() and right.isalpha()


def _compare_bases(left: str, right: str) -> Verdict | None:
    """Numerals that state their base, `101_2`; None if neither does, or the other is no number."""
    stated = [based(left), based(right)]
    one, other = (found or _in_decimal(text) for found, text in zip(stated, (left, right), strict=True))
    if stated == [None, None] or one is None or other is None:
        return None
    if one.value == other.value:
        return Verdict("equal", "number")
    if one.digits == other.digits and None in stated:
        return Verdict("undecided", "number", "the same digits, and only one of them states its base")
    return Verdict("different", "number")


def _in_decimal(text: str) -> Based | None:
    number = parse_number(text)
    return Based(number.value, text) if number else None


def _compare_others(left: str, right: str, one: Number | None, other: Number | None) -> Verdict | None:
    """Two numbers, a number and a word, and what algebra cannot read; None if algebra is needed."""
    known = [number for number in (one, other) if number is not None]
    if len(known) == 2:
        return _compare_numbers(*known)
    if known and any(len(side) > 1 and _WORDS.fullmatch(side) for side in (left, right)):
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


def _choice(text: str) -> str:
    """`(B)`, `B)` and `option B` as `B`."""
    match = re.fullmatch(r"(?:[Oo]ption |[Cc]hoice )?\(?([A-Z])\)?", text)
    return match[1] if match else text


def _chosen(answer: str, text: str, other: str) -> str:
    """`C) Paris` as `C` if the other side is a letter; but not if it has several lines or names a second choice."""
    match = _CHOSEN.fullmatch(text) if re.fullmatch("[A-Z]", other) and "\n" not in answer.strip() else None
    return match["letter"] if match and not _OTHER_CHOICE.search(match["said"]) else text


def _compare_numbers(one: Number, other: Number) -> Verdict:
    readings = {one.value, one.numeral} & {other.value, other.numeral} if one.percent != other.percent else set()
    if one.value != other.value and not readings:
        return Verdict("different", "number")
    if one.unit and other.unit and one.unit != other.unit:
        return Verdict("undecided", "number", f"the same number with different units: {one.unit!r} and {other.unit!r}")
    return Verdict("equal", "number")


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
