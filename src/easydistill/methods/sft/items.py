"""What a micro-batch is made of: rows one by one, or packs of them, read when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, overload

Row = TypeVar("Row")


class Items(Sequence[list[Row]]):
    """Lists of rows.

    Args:
        rows: in memory or on disk.
        packs: the rows of each item, by their numbers; by default every row is an item of its own.
    """

    def __init__(self, rows: Sequence[Row], packs: Sequence[Sequence[int]] | None = None) -> None:
        self._rows, self._packs = rows, packs

    def __len__(self) -> int:
        return len(self._rows if self._packs is None else self._packs)

    @overload
    def __getitem__(self, at: int) -> list[Row]: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[list[Row]]: ...
    def __getitem__(self, at: int | slice) -> list[Row] | Sequence[list[Row]]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        return [self._rows[at]] if self._packs is None else [self._rows[number] for number in self._packs[at]]
