"""Which rows of a pool are taken, and their order. Both depend on the seed and the rows' ids alone.

Of an input, the rows with the smallest hashes of seed and id are taken, so a larger mix of the same inputs holds the
rows of a smaller one. The order has hashes of its own: by those of the draw, the rows of an input of which little is
taken would come first.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

from easydistill.data.records import Sample, draw_key
from easydistill.mixing.pool import Pool


class Drawn(Sequence[Sample]):
    """The rows of a mix, in their order; each is read from disk when it is asked for.

    Args:
        counts: rows that each input of the pool gives.
    """

    def __init__(self, pool: Pool, counts: Mapping[str, int], seed: int) -> None:
        import numpy

        self._pool = pool
        keys = _keys(draw_key(seed, identity) for identity in pool.ids())
        taken = [part for name, count in counts.items() for part in _taken(pool.numbers(name), count, keys)]
        numbers = numpy.concatenate([part for part, _ in taken]) if taken else numpy.empty(0, numpy.int64)
        epochs = numpy.concatenate([numpy.full(len(part), epoch) for part, epoch in taken] or [numbers])
        copied = set(numbers[epochs > 1].tolist())
        known = {number: name for number, name in enumerate(pool.ids()) if number in copied} if copied else {}
        first = _keys(_order_key(seed, identity) for identity in pool.ids())[numbers]
        for at in numpy.flatnonzero(epochs > 1).tolist():
            identity = pool.copy_id(known[int(numbers[at])], int(epochs[at]))
            first[at] = _keys([_order_key(seed, identity)])[0]
        order = numpy.lexsort((first[:, 1], first[:, 0]))
        self._numbers, self._epochs = numbers[order], epochs[order]

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Sample]: ...
    def __getitem__(self, at: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        return self._pool.row(int(self._numbers[at]), int(self._epochs[at]))

    def __iter__(self) -> Iterator[Sample]:
        return (self[at] for at in range(len(self)))


def _taken(numbers: Any, count: int, keys: Any) -> Iterator[tuple[Any, int]]:
    """(numbers of rows, which copy of them it is): whole rounds, then the rows with the smallest keys."""
    epoch = 1
    while count >= len(numbers) > 0:
        yield numbers, epoch
        count, epoch = count - len(numbers), epoch + 1
    if count:
        import numpy

        of_input = keys[numbers]
        yield numbers[numpy.lexsort((of_input[:, 1], of_input[:, 0]))[:count]], epoch


def _order_key(seed: int, identity: str) -> bytes:
    return draw_key(seed, f"order\0{identity}")


def _keys(hashes: Iterable[bytes]) -> Any:
    """The first sixteen bytes of hashes, as a numpy array of two numbers each."""
    import numpy

    found = array("Q")
    for value in hashes:
        found.append(int.from_bytes(value[:8]))
        found.append(int.from_bytes(value[8:16]))
    return numpy.array(found, dtype=numpy.uint64).reshape(-1, 2)
