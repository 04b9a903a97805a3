"""Novelty of a text with respect to a pool: duplicate, near duplicate (MinHash), too similar (ROUGE-L), or new.

    duplicate        the same normalised spelling
    near duplicate   estimated Jaccard similarity of the sets of 5-character shingles ≥ 0.8 (MinHash, Broder 1997)
    too similar      ROUGE-L, F-measure = 2·LCS / (m + n) over tokens, > 0.7 (Lin 2004; Self-Instruct, Wang et al. 2023)

The search is exact: it finds every pool text that reaches a threshold, not only probable ones.

- Two signatures of P slots that agree in a share t differ in at most d = ⌊(1−t)·P⌋ of them. Split into more than d
  bands, they have a band in common (pigeonhole), so a table of bands finds every such pair.
- LCS ≤ overlap of the two bags of tokens, and F > t requires a minimum overlap. If k tokens of the new text are not
  looked up, a pool text with overlap o still shares at least o − k of the others. So only the rarest tokens are looked
  up, and only pool texts that can still reach the minimum are compared.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal, NamedTuple

from easydistill.errors import MissingExtra
from easydistill.synthesis.text import normalise, tokens

SHINGLE = 5
"""Characters per shingle."""
PERMUTATIONS = 128
"""Slots of a MinHash signature; the estimate's standard error is at most 0.5/√128 = 0.044."""
NEAR_DUPLICATE = 0.8
TOO_SIMILAR = 0.7
_SIGNATURE_SEED = 1
_PURPOSE = "Comparing texts"

Reason = Literal["duplicate", "near_duplicate", "too_similar", "same_meaning"]


class Near(NamedTuple):
    """Why a text is not new."""

    reason: Reason
    detail: str
    """What was measured, against which text."""
    nearest: str
    """Id of the most similar text."""


@dataclass(frozen=True)
class _Features:
    """The features by which a text is compared, each computed when first used."""

    text: str
    permutations: int

    @cached_property
    def units(self) -> list[str]:
        return tokens(self.text)

    @cached_property
    def spelling(self) -> str:
        return " ".join(self.units) or normalise(self.text)

    @cached_property
    def signature(self) -> Any:
        import rensa

        solid = "".join(self.units) or self.spelling
        sketch = rensa.RMinHash(num_perm=self.permutations, seed=_SIGNATURE_SEED)
        sketch.update([solid[start : start + SHINGLE] for start in range(max(1, len(solid) - SHINGLE + 1))])
        return sketch

    @cached_property
    def bag(self) -> list[tuple[str, int]]:
        """The bag of tokens as a set: each token with the number of its occurrence."""
        seen: Counter[str] = Counter()
        bag = []
        for unit in self.units:
            bag.append((unit, seen[unit]))
            seen[unit] += 1
        return bag


class Novelty:
    """A growing pool of texts, against which a text is checked for novelty.

    Results depend on which texts are in the pool, not on the order in which they were added. A check against 50,000
    instructions takes about a millisecond.

    Args:
        near_duplicate: minimum estimated Jaccard similarity of near duplicates, above 0.
        too_similar: maximum ROUGE-L F-measure allowed; 1 allows everything.
        permutations: slots of a signature.

    Raises:
        MissingExtra: `synth` is not installed.
    """

    def __init__(
        self,
        near_duplicate: float = NEAR_DUPLICATE,
        too_similar: float = TOO_SIMILAR,
        permutations: int = PERMUTATIONS,
    ) -> None:
        self._ids: list[str] = []
        self._by_spelling: dict[str, str] = {}
        self._permutations = permutations
        self._last: _Features | None = None
        self._signatures = _Signatures(near_duplicate, permutations)
        self._subsequences = _Subsequences(too_similar)

    def __len__(self) -> int:
        return len(self._ids)

    def check(self, text: str) -> Near | None:
        """Why a text is not new, or None. Names the nearest text; among equally near ones, that with the least id."""
        features = self._features(text)
        equal = self._by_spelling.get(features.spelling)
        if equal is not None:
            return Near("duplicate", f"the same text as {equal}", equal)
        found = self._signatures.nearest(features, self._ids)
        if found is not None:
            share, nearest = found
            return Near("near_duplicate", f"MinHash similarity {share:.2f} to {nearest}", nearest)
        found = self._subsequences.nearest(features, self._ids)
        if found is not None:
            score, nearest = found
            return Near("too_similar", f"ROUGE-L {score:.2f} to {nearest}", nearest)
        return None

    def add(self, identity: str, text: str) -> None:
        """Add a text to the pool, new or not."""
        features = self._features(text)
        self._ids.append(identity)
        self._by_spelling[features.spelling] = min(identity, self._by_spelling.get(features.spelling, identity))
        self._signatures.add(features)
        self._subsequences.add(features)

    def offer(self, identity: str, text: str) -> Near | None:
        """Add a text to the pool if it is new; otherwise return why it is not."""
        near = self.check(text)
        if near is None:
            self.add(identity, text)
        return near

    def _features(self, text: str) -> _Features:
        # A text that was just checked is usually the next to be added.
        if self._last is None or self._last.text != text:
            self._last = _Features(text, self._permutations)
        return self._last


class _Signatures:
    """MinHash signatures, indexed by band."""

    def __init__(self, threshold: float, permutations: int) -> None:
        try:
            import rensa
        except ImportError:
            raise MissingExtra("synth", _PURPOSE) from None
        self._needed = _ceil(Fraction(str(threshold)) * permutations)
        self._slots = permutations
        differing = permutations - self._needed
        bands = next((count for count in _divisors(permutations) if count > differing), None)
        assert bands is not None, "a threshold above 0 leaves at least one slot in common"
        self._table = rensa.RMinHashLSH(threshold=threshold, num_perm=permutations, num_bands=bands)
        self._stored: list[Any] = []

    def add(self, features: _Features) -> None:
        self._table.insert(len(self._stored), features.signature)
        self._stored.append(features.signature)

    def nearest(self, features: _Features, ids: list[str]) -> tuple[float, str] | None:
        best: tuple[float, str] | None = None
        for row in self._table.query(features.signature):
            share = self._stored[row].jaccard(features.signature)
            if round(share * self._slots) >= self._needed:
                best = _nearer(best, (share, ids[row]))
        return best


class _Subsequences:
    """Token sequences, indexed by token."""

    def __init__(self, threshold: float) -> None:
        try:
            import numpy
            from rapidfuzz.distance import LCSseq
        except ImportError:
            raise MissingExtra("synth", _PURPOSE) from None
        self._numpy = numpy
        self._common = LCSseq.similarity
        exact = Fraction(str(threshold)).limit_denominator(1_000_000)
        self._p, self._q = exact.numerator, exact.denominator
        self._numbers: dict[str, int] = {}
        self._rows: list[array[int]] = []
        self._lengths = array("q")
        self._holders: dict[tuple[str, int], array[int]] = {}

    def add(self, features: _Features) -> None:
        row = len(self._rows)
        self._rows.append(array("q", (self._number(unit) for unit in features.units)))
        self._lengths.append(len(features.units))
        for key in features.bag:
            self._holders.setdefault(key, array("q")).append(row)

    def nearest(self, features: _Features, ids: list[str]) -> tuple[float, str] | None:
        ours = [self._numbers.get(unit, -1) for unit in features.units]
        best: tuple[float, str] | None = None
        for row, needed in self._possible(features):
            theirs = self._rows[row]
            common = self._common(ours, theirs, score_cutoff=needed)
            if common >= needed:
                best = _nearer(best, (2 * common / (len(ours) + len(theirs)), ids[row]))
        return best

    def _number(self, unit: str) -> int:
        return self._numbers.setdefault(unit, len(self._numbers))

    def _possible(self, features: _Features) -> list[tuple[int, int]]:
        """Rows that may be too similar, each with the minimum LCS that would make it so.

        F > p/q with lengths m and n  ⇔  2q·LCS > p(m + n)  ⇔  LCS ≥ ⌊p(m + n) / 2q⌋ + 1; and since LCS ≤ n, the
        shortest possible row has n > pm / (2q − p).
        """
        numpy, p, q = self._numpy, self._p, self._q
        m = len(features.bag)
        shortest = p * m // (2 * q - p) + 1
        least = p * (m + shortest) // (2 * q) + 1
        if least > m or not self._rows:
            return []
        holders = sorted((self._holders.get(key, _NONE) for key in features.bag), key=len)[: m - least + 1]
        left_out = m - len(holders)
        lists = [numpy.frombuffer(rows, dtype=numpy.int64) for rows in holders if rows]
        if not lists:
            return []
        shared = numpy.bincount(numpy.concatenate(lists))
        rows = numpy.flatnonzero(shared)
        # A copy: a view would keep the array from growing.
        n = numpy.array(self._lengths, dtype=numpy.int64)[rows]
        needed = p * (m + n) // (2 * q) + 1
        fit = (needed <= numpy.minimum(m, n)) & (shared[rows] + left_out >= needed)
        return list(zip(rows[fit].tolist(), needed[fit].tolist(), strict=True))


_NONE: array[int] = array("q")


def _nearer(best: tuple[float, str] | None, other: tuple[float, str]) -> tuple[float, str]:
    return other if best is None or (-other[0], other[1]) < (-best[0], best[1]) else best


def _ceil(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)


def _divisors(number: int) -> list[int]:
    return [count for count in range(1, number + 1) if number % count == 0]
