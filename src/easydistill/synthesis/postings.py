"""Which texts have a key: an index that takes eight bytes an entry, for pools of millions of texts."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence
from typing import Any

from easydistill.errors import MissingExtra

_RECENT = 1 << 18
"""Entries after which the dictionary of recent ones becomes a sorted segment."""
_GROWTH = 8
"""A segment is merged into the one before it unless that is this many times larger."""
_BLOCK = 64
"""Keys of a large segment that are searched at once."""
_LARGE = 1 << 22


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
        self._segments: list[_Segment] = []

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
        for segment in self._segments:
            places, begin, sizes = segment.ranges(keys)
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
        for segment, (places, begin, sizes) in zip(self._segments, ranges, strict=True):
            if wanted is not None:
                kept = wanted[places]
                begin, sizes = begin[kept], sizes[kept]
            # Of each range, the places begin, begin + 1, …: what is repeated is the shift of the whole count.
            ends = numpy.cumsum(sizes)
            shifts = numpy.repeat(begin - ends + sizes, sizes)
            parts.append(segment.numbers.take(shifts + numpy.arange(len(shifts))))
        return numpy.concatenate(parts)

    def _freeze(self) -> None:
        numpy = self._numpy
        lists: list[Sequence[int]] = [(held,) if isinstance(held, int) else held for held in self._recent.values()]
        keys = numpy.repeat(numpy.fromiter(self._recent, numpy.uint32, len(lists)), list(map(len, lists)))
        numbers = numpy.fromiter(itertools.chain.from_iterable(lists), numpy.uint32, len(keys))
        self._recent, self._entries = {}, 0
        order = numpy.argsort(keys, kind="stable")
        self._segments.append(_Segment(numpy, keys[order], numbers[order]))
        while len(self._segments) > 1 and len(self._segments[-2].keys) < _GROWTH * len(self._segments[-1].keys):
            self._merge()

    def _merge(self) -> None:
        """Make the last two segments one, in the order of the keys; the entries of the earlier one come first."""
        numpy = self._numpy
        late, early = self._segments.pop(), self._segments.pop()
        keys, numbers = [early.keys, late.keys], [early.numbers, late.numbers]
        # Each late entry moves by the number of early entries before it.
        places = early.keys.searchsorted(late.keys, side="right") + numpy.arange(len(late.keys))
        from_early = numpy.ones(len(early.keys) + len(late.keys), dtype=bool)
        from_early[places] = False
        # Two halves of a gigabyte: what is merged is freed before the rest is.
        del early, late
        merged = []
        for parts in (keys, numbers):
            target = numpy.empty(len(from_early), numpy.uint32)
            target[places] = parts.pop()
            target[from_early] = parts.pop()
            merged.append(target)
        self._segments.append(_Segment(numpy, *merged))


class _Segment:
    """Entries sorted by key: two arrays of equal length.

    A binary search of hundreds of megabytes waits for memory at each step. So the last key of each block of keys is
    beside them, and a search reads these, which the processor's cache holds, and one block.
    """

    def __init__(self, numpy: Any, keys: Any, numbers: Any) -> None:
        self._numpy = numpy
        self.keys = keys
        self.numbers = numbers
        self._last = keys[_BLOCK - 1 :: _BLOCK].copy() if len(keys) >= _LARGE else None
        self._blocks = numpy.lib.stride_tricks.sliding_window_view(keys, min(_BLOCK, len(keys)))

    def ranges(self, keys: Any) -> tuple[Any, Any, Any]:
        """Where entries with the keys are: (numbers of the keys, where the range of each begins, how long it is).

        The numbers are an index of an array as long as the keys. Ranges may be empty.
        """
        begin = self.search(keys)
        if self._last is None:
            return slice(None), begin, self.search(keys, after=True) - begin
        places = self._numpy.flatnonzero(self.keys.take(begin, mode="clip") == keys)
        begin = begin[places]
        return places, begin, self.search(keys[places], after=True) - begin

    def search(self, keys: Any, after: bool = False) -> Any:
        """How many of the segment's keys are less than each of the given ones, or with `after`, not greater."""
        side = "right" if after else "left"
        if self._last is None:
            return self.keys.searchsorted(keys, side=side)
        # The last block may be short: one that begins earlier counts the same.
        begin = self._numpy.minimum(self._last.searchsorted(keys, side=side) * _BLOCK, len(self.keys) - _BLOCK)
        blocks, asked = self._blocks[begin], keys[:, None]
        return begin + self._numpy.count_nonzero(blocks <= asked if after else blocks < asked, axis=1)
