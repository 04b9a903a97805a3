"""Which texts have a key: an index that takes eight bytes an entry, for pools of millions of texts."""

from __future__ import annotations

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
        self._recent: dict[int, list[int]] = {}
        self._segments: list[tuple[Any, Any]] = []

    def add(self, number: int, keys: Any) -> None:
        """Enter a text under each of its keys, an array of uint32."""
        for key in keys.tolist():
            self._recent.setdefault(key, []).append(number)
        self._entries += len(keys)
        if self._entries >= self._limit:
            self._freeze()

    def find(self, keys: Any) -> tuple[Any, Any]:
        """The texts under any of the keys, an array of uint32 without repetitions.

        Returns:
            (numbers of texts, in ascending order; by how many of the keys each was found): two arrays.
        """
        numpy = self._numpy
        found = [numbers for key in keys.tolist() if (numbers := self._recent.get(key))]
        parts = [numpy.array([number for numbers in found for number in numbers], dtype=numpy.uint32)]
        for known, numbers in self._segments:
            first = known.searchsorted(keys)
            hit = first < len(known)
            hit[hit] = known[first[hit]] == keys[hit]
            if hit.any():
                first = first[hit]
                last = known.searchsorted(keys[hit], side="right")
                parts += [numbers[begin:end] for begin, end in zip(first.tolist(), last.tolist(), strict=True)]
        return numpy.unique(numpy.concatenate(parts), return_counts=True)

    def _freeze(self) -> None:
        numpy = self._numpy
        keys = numpy.fromiter((key for key, numbers in self._recent.items() for _ in numbers), numpy.uint32)
        numbers = numpy.fromiter((number for numbers in self._recent.values() for number in numbers), numpy.uint32)
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
