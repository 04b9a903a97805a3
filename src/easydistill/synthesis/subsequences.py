"""Which texts of a pool have a long common subsequence of tokens with a text (ROUGE-L), found exactly.

F = 2·LCS / (m + n) > t = p/q for texts of m and n tokens  ⇔  2q·LCS > p(m + n)  ⇔  LCS ≥ c = ⌊p(m + n) / 2q⌋ + 1, and
since LCS ≤ n, the shortest text that can be too similar has n > pm / (2q − p) tokens.

Only texts that share a feature with the new one are compared. Two kinds of features are sure to be shared:

    tokens  LCS ≤ the overlap of the two bags of tokens, so that is at least c.
    pairs   The c matched tokens lie in at most (m − c) + (n − c) + 1 runs that are contiguous in both texts, so the
            texts share at least c − that = 3c − m − n − 1 pairs of neighbouring tokens.

If the features of all texts are put in one order, two bags with at least o features in common share one of the first
m − o + 1 of either (prefix filtering, Chaudhuri et al. 2006): only prefixes are indexed and looked up, from rare to
frequent, so that few texts share one.

Where no token is rare (problems of one kind, templates), each stands in a share of all texts, and comparing them takes
time that grows with the square of the pool. From the size on where that begins to be felt, texts are found by their
pairs, the rarest first, until `BUDGET` texts are read. Two texts that are too similar share many of their pairs, so it
is rare that one is missed, but it is no longer certain: `cut` counts such searches.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from easydistill.data.spool import Blobs
from easydistill.errors import MissingExtra
from easydistill.synthesis.postings import Postings

CROWDED = 20_000
"""Mean number of index entries read in a search from which on pairs are indexed."""
BUDGET = 5_000
"""Maximum number of index entries read in a search from then on."""
_RAREST = 48
"""Maximum number of pairs by which a text is indexed."""
_WORDS = 8
"""64-bit words of a text's sketch."""
_PATIENCE = 500
"""Checks between two decisions."""
_MIX = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93)
"""Odd factors that spread numbers over 64 bits."""


@dataclass
class _Text:
    """A text's tokens as numbers, and what is made of them when it is first used."""

    units: list[str]
    size: int
    """Number of different tokens in the pool when this was made."""
    known: list[int]
    new: dict[str, int]
    """Numbers of tokens that the pool lacks."""
    sketch: Any = None
    token_keys: Any = None
    pair_keys: Any = None


class Subsequences:
    """Token sequences of a pool, numbered from 0.

    Args:
        threshold: the F-measure above which texts are too similar; 1 finds nothing.

    Raises:
        MissingExtra: `synth` is not installed.
    """

    def __init__(self, threshold: float) -> None:
        try:
            import numpy
            from rapidfuzz.distance import LCSseq
        except ImportError:
            raise MissingExtra("synth", "Comparing texts") from None
        self._numpy = numpy
        self._common = LCSseq.similarity
        exact = Fraction(str(threshold)).limit_denominator(1_000_000)
        self._p, self._q = exact.numerator, exact.denominator
        self._numbers: dict[str, int] = {}
        self._rows = Blobs()
        self._lengths = array("I")
        # Copies of parts of these are read: while there are views, arrays cannot grow.
        self._sketches = array("Q")
        # One array for each word: gathered several times as fast as rows of words.
        self._folded = [array("Q") for _ in range(_WORDS // 2)]
        self._by_token = Postings()
        self._by_pair: Postings | None = None
        self._read = self._checks = 0
        self.cut = 0
        """Searches in which a text that is too similar may have been missed."""
        self._sure: dict[int, int] = {}
        self._last: _Text | None = None

    def add(self, number: int, units: list[str]) -> None:
        """Add the next text's tokens."""
        text = self._numbered(units)
        self._numbers.update(text.new)
        self._rows.append(array("I", text.known).tobytes())
        self._lengths.append(len(text.known))
        self._sketches.frombytes(self._sketch(text).tobytes())
        for word, words in zip(_fold(self._sketch(text)).tolist(), self._folded, strict=True):
            words.append(word)
        self._index(number, text)

    def nearest(self, units: list[str], ids: Sequence[str]) -> tuple[float, str] | None:
        """(F-measure, id) of the most similar text above the threshold, the least id among equals; None without one."""
        text = self._numbered(units)
        best: tuple[float, str] | None = None
        m = len(text.known)
        for row, needed in self._possible(text):
            common = self._common(text.known, array("I", self._rows[row]).tolist(), score_cutoff=needed)
            if common >= needed:
                best = nearer(best, (2 * common / (m + self._lengths[row]), ids[row]))
        return best

    def _numbered(self, units: list[str]) -> _Text:
        """A text's tokens as numbers. Those that the pool lacks get the numbers that they would have in it."""
        # A text that was just compared is usually the next to be added.
        if self._last is None or self._last.units is not units or self._last.size != len(self._numbers):
            size, new = len(self._numbers), dict[str, int]()
            known = [
                found if (found := self._numbers.get(unit)) is not None else new.setdefault(unit, size + len(new))
                for unit in units
            ]
            self._last = _Text(units, size, known, new)
        return self._last

    def _possible(self, text: _Text) -> list[tuple[int, int]]:
        """Texts that may be too similar, each with the LCS that would make it so.

        A bit set in one text's sketch alone stands for at least one token that the other text lacks.
        """
        numpy = self._numpy
        rows = self._candidates(text)
        if not len(rows):
            return []
        m, sketch = len(text.known), self._sketch(text)
        n = numpy.frombuffer(self._lengths, numpy.uint32).take(rows).astype(numpy.int64)
        needed = self._p * (m + n) // (2 * self._q) + 1
        ours = _fold(sketch)
        common = numpy.zeros(len(rows), numpy.uint16)
        for word, words in zip(ours, self._folded, strict=True):
            common += numpy.bitwise_count(numpy.frombuffer(words, numpy.uint64).take(rows) & word)
        lacking = int(numpy.bitwise_count(ours).sum()) - common.astype(numpy.int64)
        fit = numpy.flatnonzero(needed <= numpy.minimum(m - lacking, n))
        rows, n, needed = rows[fit], n[fit], needed[fit]
        theirs = numpy.frombuffer(self._sketches, numpy.uint64).reshape(-1, _WORDS).take(rows, axis=0)
        fit = needed <= numpy.minimum(m - _bits(numpy, sketch & ~theirs), n - _bits(numpy, theirs & ~sketch))
        return list(zip(rows[fit].tolist(), needed[fit].tolist(), strict=True))

    def _sketch(self, text: _Text) -> Any:
        """A bit for each token, by its hash."""
        if text.sketch is None:
            numpy = self._numpy
            mixed = numpy.array(text.known, dtype=numpy.uint64) * _MIX[0]
            sketch = numpy.zeros(_WORDS * 64, dtype=numpy.uint8)
            sketch[(mixed >> numpy.uint64(64 - _WORDS.bit_length() - 5)).astype(numpy.intp)] = 1
            text.sketch = numpy.packbits(sketch).view(numpy.uint64)
        return text.sketch

    def _candidates(self, text: _Text) -> Any:
        """All texts that may be too similar, and others."""
        if self._by_pair is not None and self._sure_pairs(len(text.known)) > 0:
            keys, whole = self._pair_keys(text)
            found, _, cut = self._by_pair.find(keys, BUDGET)
            self.cut += cut or not whole
            return found
        found, entries, cut = self._by_token.find(self._token_keys(text), None if self._by_pair is None else BUDGET)
        self.cut += cut
        self._read += entries
        self._checks += 1
        if self._checks == _PATIENCE:
            if self._by_pair is None and self._read > CROWDED * _PATIENCE and self._p > 2 * self._q // 3:
                self._turn_to_pairs()
            self._read = self._checks = 0
        return found

    def _index(self, number: int, text: _Text) -> None:
        if self._by_pair is not None:
            self._by_pair.add(number, self._pair_keys(text)[0])
        if self._by_pair is None or len(text.known) <= self._shares_no_pair:
            self._by_token.add(number, self._token_keys(text))

    def _turn_to_pairs(self) -> None:
        """Index all texts by pairs, and by tokens only those that a text may be near without sharing a pair."""
        shortest = 1
        while self._sure_pairs(shortest) <= 0:
            shortest += 1
        longest = shortest - 1
        while self._sure_pairs(longest + 1) <= 0:
            longest += 1
        self._shares_no_pair = (2 * self._q - self._p) * longest // self._p + 1
        self._by_pair, self._by_token = Postings(), Postings()
        for number, data in enumerate(self._rows):
            self._index(number, _Text([], 0, array("I", data).tolist(), {}))

    def _least(self, m: int, n: int) -> int:
        """The least LCS of texts of m and n tokens that are too similar."""
        return self._p * (m + n) // (2 * self._q) + 1

    def _shortest(self, m: int) -> int:
        """The least number of tokens of a text that can be too similar to one of m tokens."""
        return self._p * m // (2 * self._q - self._p) + 1

    def _sure_pairs(self, m: int) -> int:
        """How many pairs a text of m tokens shares at least with each text that it is too similar to."""
        if m not in self._sure:
            longest = (2 * self._q - self._p) * m // self._p + 1
            lengths = range(self._shortest(m), longest + 1)
            self._sure[m] = min(3 * self._least(m, n) - m - n - 1 for n in lengths)
        return self._sure[m]

    def _token_keys(self, text: _Text) -> Any:
        """Keys of the tokens, with the number of the occurrence of each, that are the text's prefix.

        Tokens are numbered as they appear, so mostly, the larger a number, the rarer the token. Any order that never
        changes would be right.
        """
        numpy = self._numpy
        m = len(text.known)
        least = self._least(m, self._shortest(m))
        if least > m:
            return numpy.empty(0, numpy.uint32)
        if text.token_keys is None:
            ordered = numpy.array(text.known, dtype=numpy.uint64)
            ordered.sort()
            kept = slice(least - 1, m)
            text.token_keys = self._keys(ordered[kept] * _MIX[0] + self._occurrences(ordered)[kept] * _MIX[1])
        return text.token_keys

    def _pair_keys(self, text: _Text) -> tuple[Any, bool]:
        """(keys of the rarest pairs of neighbouring tokens, whether they are the whole prefix)."""
        numpy = self._numpy
        if text.pair_keys is None:
            numbers = numpy.array(text.known, dtype=numpy.uint64)
            pairs = numbers[1:] * _MIX[0] + numbers[:-1] * _MIX[1]
            pairs.sort()
            # By a hash: the tokens' numbers say little of how rare a pair is.
            mixed = (pairs + self._occurrences(pairs) * _MIX[2]) * _MIX[2]
            mixed.sort()
            text.pair_keys = (mixed[:_RAREST] >> numpy.uint64(32)).astype(numpy.uint32)
        prefix = max(0, len(text.known) - 1) - max(1, self._sure_pairs(len(text.known))) + 1
        return text.pair_keys, prefix <= _RAREST

    def _occurrences(self, ordered: Any) -> Any:
        """How many equal values stand before each value of a sorted array."""
        numpy = self._numpy
        return numpy.arange(len(ordered), dtype=numpy.uint64) - ordered.searchsorted(ordered).astype(numpy.uint64)

    def _keys(self, mixed: Any) -> Any:
        return ((mixed * _MIX[2]) >> self._numpy.uint64(32)).astype(self._numpy.uint32)


def _fold(sketch: Any) -> Any:
    """A sketch in half as many bits, by which most texts are too far already."""
    return sketch[: _WORDS // 2] | sketch[_WORDS // 2 :]


def _bits(numpy: Any, words: Any) -> Any:
    """How many bits are set in each row of words."""
    return numpy.bitwise_count(words).sum(axis=1, dtype=numpy.int64)


def nearer(best: tuple[float, str] | None, other: tuple[float, str]) -> tuple[float, str]:
    """The larger measure; of equal ones, that with the lesser id."""
    return other if best is None or (-other[0], other[1]) < (-best[0], best[1]) else best
