"""The rows of several inputs, on disk, each with an id that no other row has.

In memory are some 40 bytes a row: hashes of its id and of its chat, and the input that it is from. Ids are compared as
text, and chats as JSON, wherever these hashes are equal.

A row with an earlier row's id and chat is the same row, and rejected as `duplicate`: of the same chain with two sets of
scores, the first input's stays. A row with an earlier row's id and another chat is a clash: `rename` writes the input's
name before the id and, if that is taken too, a number behind it.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from easydistill.data.messages import Chat, identity_of
from easydistill.data.records import Rejection, Sample, canonical_json
from easydistill.data.spool import Blobs, Spool
from easydistill.errors import DataError

INPUT, OWN_ID, EPOCH = "mix_input", "mix_id", "mix_epoch"
"""Fields of a mixed row: the input that it is from, its id there, and, of a copy, which one it is, from 2."""
DUPLICATE, CLASH = "duplicate", "id_clash"
Clashes = Literal["rename", "drop", "refuse"]


@dataclass
class Told:
    """What became of one input's rows."""

    read: int = 0
    """Rows, those that were rejected included."""
    rejected: Counter[str] = field(default_factory=Counter)
    """By reason."""
    renamed: int = 0
    available: int = 0
    """Rows that may be taken."""


class Pool:
    """Rows of several inputs.

    Args:
        names: the inputs, in their order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.told = {name: Told() for name in names}
        self.rejected: Spool[Rejection] = Spool()
        self.renamed: dict[int, str] = {}
        """Number of a row → its new id."""
        self._rows: Spool[Sample] = Spool()
        # Apart from the rows, since they are gone through several times.
        self._own_ids = Blobs()
        self._input = array("H")
        self._ids, self._chats = array("Q"), array("Q")
        self._gone = bytearray()
        self._taken = _Taken(self._ids)

    def add(self, name: str, row: Sample) -> None:
        """Add a row of an input."""
        self.told[name].read += 1
        self._rows.append(row)
        self._own_ids.append(row.id.encode("utf-8", "surrogatepass"))
        self._input.append(self.names.index(name))
        self._ids.append(_eight_bytes(row.id))
        self._chats.append(_eight_bytes(_chat_text(row)))
        self._gone.append(0)

    def reject(self, name: str, rejection: Rejection, *, read: bool = True) -> None:
        """Count a row of an input that cannot be taken.

        Args:
            read: it was not added before.
        """
        self.told[name].read += read
        self.told[name].rejected[rejection.reason] += 1
        self.rejected.append(rejection)

    def settle(self, clashes: Clashes, stage: str) -> None:
        """Reject duplicates, and see to it that no two rows have the same id. To be called once, after the last row.

        Raises:
            DataError: two rows with one id differ, and that is to be refused.
        """
        self._taken = _Taken(self._ids)
        # In the order of their first rows, so that what is renamed does not depend on hashes.
        for group in sorted(_equal(self._ids)):
            self._settle_equal(group, clashes, stage)
        for name in self.names:
            self.told[name].available = len(self.numbers(name))

    def _settle_equal(self, group: Sequence[int], clashes: Clashes, stage: str) -> None:
        """Settle rows whose ids have one hash."""
        chats: dict[str, dict[str, int]] = {}
        for number in group:
            row = self._rows[number]
            same = chats.setdefault(row.id, {})
            text = hashlib.sha256(_chat_text(row).encode("utf-8", "surrogatepass")).hexdigest()
            if text in same:
                self._drop(number, row, DUPLICATE, f"the same row as {self._named(same[text])}", stage)
                continue
            if same:
                self._clash(number, row, next(iter(same.values())), clashes, stage)
            same[text] = number

    def _clash(self, number: int, row: Sample, first: int, clashes: Clashes, stage: str) -> None:
        name, other = self.names[self._input[number]], self.names[self._input[first]]
        what = f"row {row.id!r} of {name} has the id of another chat, of {other}"
        if clashes == "refuse":
            hint = 'set "clashes": "rename" to keep both, or "drop" to keep the first'
            raise DataError(f"{what}\n    → {hint}")
        if clashes == "drop":
            self._drop(number, row, CLASH, what, stage)
            return
        self.renamed[number] = self._taken.free(f"{name}:{row.id}")
        self._taken.take(self.renamed[number])
        self.told[name].renamed += 1

    def _drop(self, number: int, row: Sample, reason: str, detail: str, stage: str) -> None:
        self._gone[number] = 1
        self.reject(self.names[self._input[number]], Rejection(row.id, stage, reason, detail), read=False)

    def _named(self, number: int) -> str:
        return f"one of {self.names[self._input[number]]}"

    def equal_chats(self) -> int:
        """Rows whose chat, as far as a hash tells, is that of an earlier row with another id."""
        import numpy

        left = _as_numpy(self._chats)[numpy.frombuffer(bytes(self._gone), dtype=numpy.uint8) == 0]
        return int(len(left) - len(numpy.unique(left)))

    def numbers(self, name: str) -> Any:
        """Numbers of the rows of an input that may be taken, in their order, as a numpy array."""
        import numpy

        places = numpy.frombuffer(self._input, dtype=numpy.uint16) if self._input else numpy.empty(0, numpy.uint16)
        gone = numpy.frombuffer(bytes(self._gone), dtype=numpy.uint8)
        return numpy.flatnonzero((places == self.names.index(name)) & (gone == 0))

    def ids(self) -> Iterator[str]:
        """The ids of all rows, also those that may not be taken, in their order."""
        for number, own in enumerate(self._own_ids):
            yield self.renamed.get(number) or own.decode("utf-8", "surrogatepass")

    def row(self, number: int, epoch: int = 1) -> Sample:
        """A row as it is written, with where it comes from. `epoch` counts its copies from 1."""
        row = self._rows[number]
        name = self.names[self._input[number]]
        # A mix of a mix names both.
        before = row.meta.get(INPUT)
        origin = {
            INPUT: name if before is None else f"{name}/{before}",
            OWN_ID: row.meta.get(OWN_ID, row.id),
            **({EPOCH: epoch} if epoch > 1 else {}),
        }
        identity = self.copy_id(self.renamed.get(number, row.id), epoch)
        return replace(row, id=identity, meta={**row.meta, **origin})

    def copy_id(self, identity: str, epoch: int) -> str:
        """The id of a copy of a row."""
        return identity if epoch == 1 else self._taken.free(f"{identity}-epoch{epoch}")


class _Taken:
    """Which ids there are, by their hashes: at worst an id is numbered that was free."""

    def __init__(self, keys: array[int]) -> None:
        import numpy

        self._sorted = numpy.sort(_as_numpy(keys))
        self._added: set[int] = set()

    def has(self, identity: str) -> bool:
        """Whether a row has this id."""
        import numpy

        key = _eight_bytes(identity)
        at = int(numpy.searchsorted(self._sorted, numpy.uint64(key)))
        return key in self._added or (at < len(self._sorted) and int(self._sorted[at]) == key)

    def free(self, wanted: str) -> str:
        """The id, with a number behind it if it is taken."""
        name, count = wanted, 1
        while self.has(name):
            count += 1
            name = f"{wanted}-{count}"
        return name

    def take(self, identity: str) -> None:
        """Note that a row has this id now."""
        self._added.add(_eight_bytes(identity))


def _as_numpy(keys: array[int]) -> Any:
    import numpy

    return numpy.frombuffer(keys, dtype=numpy.uint64) if keys else numpy.empty(0, numpy.uint64)


def _equal(keys: array[int]) -> Iterator[list[int]]:
    """Numbers of the places that have the same key as another one, group by group."""
    import numpy

    values = _as_numpy(keys)
    order = numpy.argsort(values, kind="stable")
    starts = numpy.flatnonzero(numpy.append(True, values[order][1:] != values[order][:-1]))
    for begin, end in zip(starts, numpy.append(starts[1:], len(order)), strict=True):
        if end - begin > 1:
            yield order[begin:end].tolist()


def _chat_text(row: Sample) -> str:
    return canonical_json(identity_of(row.messages, Chat.of(row)))


def _eight_bytes(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
