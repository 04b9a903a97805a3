"""Which texts have a key: an index that takes eight bytes an entry, for pools of millions of texts."""

from __future__ import annotations

from array import array
from typing import Any

from easydistill.errors import MissingExtra

_RECENT = 1 << 18
"""Entries after which the dictionary of recent ones becomes a sorted segment."""
_GROWTH = 4
"""A segment is merged into the one before it unless that is this many times larger."""


class Postings:
    """Numbers of texts by 32-bit keys. Texts are numbered from 0 and added in that order.

    Recent entries are in a dictionary. Older ones are in arrays sorted by key, whose sizes fall geometrically, so a
    lookup searches a few arrays, and an entry is moved O(log n) times.

    Args:
        recent: number of entries in the dictionary.

    Raises:
        MissingExtra: numpy is not installed.
    """

    def __init__(self, recent: int = _RECENT) -> None:
        try:
            import numpy
        except ImportError:
            raise MissingExtra("synth", "Comparing texts") from None
        self._numpy = numpy
        self._limit = recent
        self._entries = 0
        self._recent: dict[int, array[int]] = {}
        self._segments: list[tuple[Any, Any]] = []

    def add(self, number: int, keys: Any) -> None:
        """Enter a text under each of its keys, an array of uint32."""
        for key in keys.tolist():
            held = self._recent.get(key)
            if held is None:
                self._recent[key] = array("I", (number,))
            else:
                held.append(number)
        self._entries += len(keys)
        if self._entries >= self._limit:
            self._freeze()

    def find(self, keys: Any, budget: int | None = None) -> tuple[Any, int, bool]:
        """The texts under any of the keys, an array of uint32.

        Args:
            budget: read the keys with the fewest texts first, and no further key beyond so many entries in all.

        Returns:
            (numbers of the texts, in ascending order; the entries that were read; whether keys were left out).
        """
        numpy = self._numpy
        recent = [self._recent.get(key, _NONE) for key in keys.tolist()]
        begins, ends = [], []
        counts = numpy.fromiter(map(len, recent), numpy.int64, len(recent))
        for known, _ in self._segments:
            begins.append(known.searchsorted(keys))
            ends.append(known.searchsorted(keys, side="right"))
            counts += ends[-1] - begins[-1]
        read = numpy.flatnonzero(counts)
        cut = False
        if budget is not None and counts.sum() > budget:
            order = numpy.argsort(counts[read], kind="stable")
            within = numpy.cumsum(counts[read][order]) <= budget
            read, cut = read[order[within]], True
        places = read.tolist()
        parts = [numpy.frombuffer(b"".join([recent[place].tobytes() for place in places]), numpy.uint32)]
        for (_, numbers), begin, end in zip(self._segments, begins, ends, strict=True):
            parts += [numbers[begin[place] : end[place]] for place in places if begin[place] < end[place]]
        entries = numpy.sort(numpy.concatenate(parts))
        new = numpy.ones(len(entries), dtype=bool)
        new[1:] = entries[1:] != entries[:-1]
        return entries[new], len(entries), cut

    def _freeze(self) -> None:
        numpy = self._numpy
        sizes = numpy.fromiter(map(len, self._recent.values()), numpy.int64, len(self._recent))
        keys = numpy.repeat(numpy.fromiter(self._recent, numpy.uint32, len(self._recent)), sizes)
        numbers = numpy.frombuffer(b"".join([held.tobytes() for held in self._recent.values()]), numpy.uint32)
        self._recent, self._entries = {}, 0
        order = numpy.argsort(keys, kind="stable")
        self._segments.append((keys[order], numbers[order]))
        while len(self._segments) > 1 and len(self._segments[-2][0]) < _GROWTH * len(self._segments[-1][0]):
            late, early = self._segments.pop(), self._segments.pop()
            self._segments.append(_merged(numpy, early, late))


_NONE: array[int] = array("I")


def _merged(numpy: Any, early: tuple[Any, Any], late: tuple[Any, Any]) -> tuple[Any, Any]:
    """Two segments as one, in the order of the keys; the entries of the earlier one come first."""
    keys = numpy.empty(len(early[0]) + len(late[0]), numpy.uint32)
    numbers = numpy.empty_like(keys)
    # Each late entry moves by the number of early entries before it.
    places = early[0].searchsorted(late[0], side="right") + numpy.arange(len(late[0]))
    from_early = numpy.ones(len(keys), dtype=bool)
    from_early[places] = False
    for target, first, second in zip((keys, numbers), early, late, strict=True):
        target[places] = second
        target[from_early] = first
    return keys, numbers
