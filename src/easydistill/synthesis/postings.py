"""Which texts have a key: an index that takes eight bytes an entry, for pools of millions of texts."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence
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
        # A number, or an array of several: most keys have one.
        self._recent: dict[int, int | array[int]] = {}
        self._segments: list[tuple[Any, Any]] = []

    def add(self, number: int, keys: Any) -> None:
        """Enter a text under each of its keys, an array of uint32."""
        recent = self._recent
        for key in keys.tolist():
            held = recent.get(key)
            if held is None:
                recent[key] = number
            elif isinstance(held, int):
                recent[key] = array("I", (held, number))
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
        recent = list(map(self._recent.get, keys.tolist()))
        counts = numpy.array([0 if held is None else 1 if isinstance(held, int) else len(held) for held in recent], int)
        ranges = []
        for known, _ in self._segments:
            begin = known.searchsorted(keys)
            places = numpy.flatnonzero(known.take(begin, mode="clip") == keys)
            begin = begin[places]
            sizes = known.searchsorted(keys[places], side="right") - begin
            counts[places] += sizes
            ranges.append((places, begin, sizes))
        wanted = None
        if budget is not None and counts.sum() > budget:
            order = numpy.argsort(counts, kind="stable")
            wanted = numpy.zeros(len(keys), dtype=bool)
            wanted[order[numpy.cumsum(counts[order]) <= budget]] = True
        entries = self._read(recent, ranges, wanted)
        entries.sort()
        new = numpy.ones(len(entries), dtype=bool)
        numpy.not_equal(entries[1:], entries[:-1], out=new[1:])
        return entries[new], len(entries), wanted is not None

    def _read(self, recent: list[Any], ranges: list[tuple[Any, Any, Any]], wanted: Any) -> Any:
        """The entries of the recent keys and of the segments' ranges whose place is wanted; None wants all."""
        numpy = self._numpy
        held = recent if wanted is None else list(itertools.compress(recent, wanted.tolist()))
        parts = [numpy.array([one for one in held if type(one) is int], numpy.uint32)]
        parts += [numpy.frombuffer(several, numpy.uint32) for several in held if type(several) is array]
        for (_, numbers), (places, begin, sizes) in zip(self._segments, ranges, strict=True):
            if wanted is not None:
                kept = wanted[places]
                begin, sizes = begin[kept], sizes[kept]
            # Of each range, the places begin, begin + 1, …: what is repeated is the shift of the whole count.
            ends = numpy.cumsum(sizes)
            shifts = numpy.repeat(begin - ends + sizes, sizes)
            parts.append(numbers[shifts + numpy.arange(len(shifts))])
        return numpy.concatenate(parts)

    def _freeze(self) -> None:
        numpy = self._numpy
        lists: list[Sequence[int]] = [(held,) if isinstance(held, int) else held for held in self._recent.values()]
        keys = numpy.repeat(numpy.fromiter(self._recent, numpy.uint32, len(lists)), list(map(len, lists)))
        numbers = numpy.fromiter(itertools.chain.from_iterable(lists), numpy.uint32, len(keys))
        self._recent, self._entries = {}, 0
        order = numpy.argsort(keys, kind="stable")
        self._segments.append((keys[order], numbers[order]))
        while len(self._segments) > 1 and len(self._segments[-2][0]) < _GROWTH * len(self._segments[-1][0]):
            late, early = self._segments.pop(), self._segments.pop()
            self._segments.append(_merged(numpy, early, late))


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
