"""Novelty of a text with respect to a pool: duplicate, near duplicate (MinHash), too similar (ROUGE-L), or new.

    duplicate        the same normalised spelling
    near duplicate   estimated Jaccard similarity of the sets of 5-character shingles ≥ 0.8 (MinHash, Broder 1997)
    too similar      ROUGE-L, F-measure = 2·LCS / (m + n) over tokens, > 0.7 (Lin 2004; Self-Instruct, Wang et al. 2023)

The search is exact: it finds every pool text that reaches a threshold, not only probable ones. The exception are very
large pools of texts that share all their words, see `subsequences.py`.

- Two signatures of P slots that agree in a share t differ in at most d = ⌊(1−t)·P⌋ of them. Cut into d + 1 bands, they
  have a band in common (pigeonhole), so an index of bands finds every such pair.
- ROUGE-L: see `subsequences.py`.

Tokens and signatures are in temporary files. In memory are, for each text, about 60 entries of 8 bytes in the indexes.
"""

from __future__ import annotations

import hashlib
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal, NamedTuple

from easydistill.data.spool import Blobs
from easydistill.errors import MissingExtra
from easydistill.synthesis.postings import Postings
from easydistill.synthesis.subsequences import Subsequences, nearer
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


class Spelling(NamedTuple):
    """What is compared of a text: its normalised spelling (`text.normalise`)."""

    text: str
    has_tokens: bool

    @classmethod
    def of(cls, text: str) -> Spelling:
        units = tokens(text)
        return cls(" ".join(units), True) if units else cls(normalise(text), False)

    def encode(self) -> bytes:
        return self.text.encode("utf-8", "surrogatepass")


class _Features:
    """The features by which a text is compared, each computed when first used."""

    def __init__(self, text: str | Spelling) -> None:
        self.text = text
        self._spelling = Spelling.of(text) if isinstance(text, str) else text

    @cached_property
    def units(self) -> list[str]:
        return self._spelling.text.split(" ") if self._spelling.has_tokens else []

    @cached_property
    def spelling(self) -> bytes:
        """A hash of the normalised spelling."""
        return hashlib.blake2b(self._spelling.encode(), digest_size=16).digest()

    @cached_property
    def shingles(self) -> list[str]:
        solid = self._spelling.text
        if self._spelling.has_tokens:
            solid = solid.replace(" ", "")
        return [solid[start : start + SHINGLE] for start in range(max(1, len(solid) - SHINGLE + 1))]


class Novelty:
    """A growing pool of texts, against which a text is checked for novelty.

    Results depend on which texts are in the pool, not on the order in which they were added.

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
        self._by_spelling: dict[bytes, int] = {}
        self._last: _Features | None = None
        self._signatures = _Signatures(near_duplicate, permutations)
        self._subsequences = Subsequences(too_similar)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def cut(self) -> int:
        """Checks in which a text that is too similar may have been missed: none in pools of ordinary size."""
        return self._subsequences.cut

    def check(self, text: str | Spelling) -> Near | None:
        """Why a text is not new, or None. Names the nearest text; among equally near ones, that with the least id."""
        features = self._features(text)
        equal = self._by_spelling.get(features.spelling)
        if equal is not None:
            return Near("duplicate", f"the same text as {self._ids[equal]}", self._ids[equal])
        found = self._signatures.nearest(features, self._ids)
        if found is not None:
            share, nearest = found
            return Near("near_duplicate", f"MinHash similarity {share:.2f} to {nearest}", nearest)
        found = self._subsequences.nearest(features.units, self._ids)
        if found is not None:
            score, nearest = found
            return Near("too_similar", f"ROUGE-L {score:.2f} to {nearest}", nearest)
        return None

    def add(self, identity: str, text: str | Spelling) -> None:
        """Add a text to the pool, new or not."""
        features = self._features(text)
        number = len(self._ids)
        self._ids.append(identity)
        equal = self._by_spelling.setdefault(features.spelling, number)
        if identity < self._ids[equal]:
            self._by_spelling[features.spelling] = number
        self._signatures.add(number, features)
        self._subsequences.add(number, features.units)

    def offer(self, identity: str, text: str) -> Near | None:
        """Add a text to the pool if it is new; otherwise return why it is not."""
        near = self.check(text)
        if near is None:
            self.add(identity, text)
        return near

    def _features(self, text: str | Spelling) -> _Features:
        # A text that was just checked is usually the next to be added.
        if self._last is None or self._last.text != text:
            self._last = _Features(text)
        return self._last


class _Signatures:
    """MinHash signatures, indexed by band."""

    def __init__(self, threshold: float, permutations: int) -> None:
        try:
            import numpy
            import rensa
        except ImportError:
            raise MissingExtra("synth", _PURPOSE) from None
        self._numpy = numpy
        self._sketch = lambda: rensa.RMinHash(num_perm=permutations, seed=_SIGNATURE_SEED)
        self._slots = permutations
        self._needed = _ceil(Fraction(str(threshold)) * permutations)
        bands = permutations - self._needed + 1
        self._starts = numpy.arange(bands) * permutations // bands
        # Odd multipliers: a band's key is a sum of its slots, and other slots or other bands give other sums.
        generator = numpy.random.default_rng(_SIGNATURE_SEED)
        self._factors = generator.integers(2**63, size=permutations, dtype=numpy.uint64) * 2 + 1
        self._by_band = Postings()
        self._stored = Blobs()
        self._last: tuple[_Features, Any, Any] | None = None

    def add(self, number: int, features: _Features) -> None:
        signature, keys = self._of(features)
        self._by_band.add(number, keys)
        self._stored.append(signature.tobytes())

    def nearest(self, features: _Features, ids: list[str]) -> tuple[float, str] | None:
        numpy = self._numpy
        signature, keys = self._of(features)
        best: tuple[float, str] | None = None
        candidates = self._by_band.find(keys)[0].tolist()
        stored = b"".join([self._stored[number] for number in candidates])
        equal = (numpy.frombuffer(stored, numpy.uint32).reshape(-1, self._slots) == signature).sum(axis=1)
        for place in numpy.flatnonzero(equal >= self._needed).tolist():
            best = nearer(best, (int(equal[place]) / self._slots, ids[candidates[place]]))
        return best

    def _of(self, features: _Features) -> tuple[Any, Any]:
        """(signature, keys of its bands), two arrays of uint32."""
        if self._last is None or self._last[0] is not features:
            numpy = self._numpy
            sketch = self._sketch()
            sketch.update(features.shingles)
            signature = numpy.array(sketch.digest(), dtype=numpy.uint32)
            sums = numpy.add.reduceat(signature * self._factors, self._starts)
            self._last = features, signature, (sums >> numpy.uint64(32)).astype(numpy.uint32)
        return self._last[1:]


def _ceil(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)
