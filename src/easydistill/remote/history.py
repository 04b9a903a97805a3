"""What a store holds of a run: a chain of commits, each of which is one object and therefore there or not.

    .easydistill/log/0000000017         commit 17: a line with the SHA-256 of the rest, a line of JSON that says what
                                        has changed, then the bytes that files have grown by
    .easydistill/snapshots/0000000016   everything that commits 1 … 16 said; they are removed once it is there
    .easydistill/parts/…                bytes of earlier commits, put together
    everything else                     the run's files under their own names

A file is a list of parts: bytes of objects, each with its SHA-256. A commit names the one before by number and
SHA-256, so one that is missing, cut or changed is noticed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from easydistill.errors import StoreDamaged
from easydistill.remote.store import Absent, Store

FOLDER = ".easydistill"
LOG, SNAPSHOTS, PARTS = f"{FOLDER}/log", f"{FOLDER}/snapshots", f"{FOLDER}/parts"
FORMAT = 1
_AT_ONCE = 8
"""Commits that are read at the same time."""
_HEAD = b"easydistill-run 1 "
_THIS = ""
"""In a commit, the key of a part whose bytes the commit itself has."""


@dataclass(frozen=True)
class Part:
    """Bytes of an object."""

    key: str
    offset: int
    length: int
    sha256: str
    level: int = 0
    """How often it was put together from smaller ones."""


Parts = tuple[Part, ...]


def size_of(parts: Parts) -> int:
    return sum(part.length for part in parts)


@dataclass(frozen=True)
class Change:
    """What a commit changes."""

    put: Mapping[str, Parts] = field(default_factory=dict)
    """Files that are new, or new from their first byte."""
    grown: Mapping[str, Part] = field(default_factory=dict)
    """What files have grown by."""
    removed: tuple[str, ...] = ()
    payload: bytes = b""
    """Of the parts without a key."""


@dataclass(frozen=True)
class State:
    """A run's files after a commit."""

    number: int = 0
    digest: str = ""
    """Of commit `number`."""
    files: Mapping[str, Parts] = field(default_factory=dict)
    since: int = 0
    """The snapshot that it was read from; commits after it are still objects."""
    owner: str = ""
    """Of commit `number`. The commits of one owner follow each other, as nobody else may make one in between."""

    def after(self, change: Change, encoded: bytes, owner: str) -> State:
        """The state once a commit has made a change."""
        number = self.number + 1
        here, start = log_key(number), len(encoded) - len(change.payload)
        files = {path: parts for path, parts in self.files.items() if path not in change.removed}

        def found(part: Part) -> Part:
            return part if part.key != _THIS else replace(part, key=here, offset=start + part.offset)

        files |= {path: tuple(map(found, parts)) for path, parts in change.put.items()}
        for path, part in change.grown.items():
            files[path] = (*files.get(path, ()), found(part))
        return State(number, sha256(encoded), files, self.since, owner)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def log_key(number: int) -> str:
    return f"{LOG}/{number:010d}"


def snapshot_key(number: int) -> str:
    return f"{SNAPSHOTS}/{number:010d}"


def own_part(data: bytes, offset: int) -> Part:
    """A part whose bytes are at `offset` of the commit's payload."""
    return Part(_THIS, offset, len(data), sha256(data))


def encode_commit(state: State, change: Change, owner: str) -> bytes:
    """The commit that follows a state, as an object."""
    header = {
        "number": state.number + 1,
        "previous": state.digest,
        "owner": owner,
        "put": {path: [asdict(part) for part in parts] for path, parts in change.put.items()},
        "grown": {path: asdict(part) for path, part in change.grown.items()},
        "removed": list(change.removed),
    }
    return _sealed(json.dumps(header, separators=(",", ":")).encode() + b"\n" + change.payload)


def decode_commit(data: bytes, key: str, state: State) -> State:
    """The state that an object makes of the one before.

    Raises:
        StoreDamaged: it is not whole, or does not follow the state.
    """
    header, payload = _unsealed(data, key)
    if header["number"] != state.number + 1 or header["previous"] != state.digest:
        raise damaged(key, "it does not follow the commit before it")
    put = {path: tuple(Part(**part) for part in parts) for path, parts in header["put"].items()}
    grown = {path: Part(**part) for path, part in header["grown"].items()}
    return state.after(Change(put, grown, tuple(header["removed"]), payload), data, header["owner"])


def encode_snapshot(state: State) -> bytes:
    files = {path: [asdict(part) for part in parts] for path, parts in state.files.items()}
    value = {"number": state.number, "digest": state.digest, "owner": state.owner, "files": files}
    return _sealed(json.dumps(value, separators=(",", ":")).encode() + b"\n")


def _decode_snapshot(data: bytes, key: str) -> State:
    value, _ = _unsealed(data, key)
    files = {path: tuple(Part(**part) for part in parts) for path, parts in value["files"].items()}
    return State(value["number"], value["digest"], files, value["number"], value["owner"])


def _sealed(body: bytes) -> bytes:
    return _HEAD + sha256(body).encode() + b"\n" + body


def _unsealed(data: bytes, key: str) -> tuple[dict[str, Any], bytes]:
    first, _, body = data.partition(b"\n")
    if first != _HEAD + sha256(body).encode():
        if first.startswith(b"easydistill-run ") and not first.startswith(_HEAD):
            raise damaged(key, "it was written by a later version of easydistill")
        raise damaged(key, "its bytes are not those that were sent")
    header, _, payload = body.partition(b"\n")
    value: dict[str, Any] = json.loads(header)
    return value, payload


def damaged(key: str, problem: str) -> StoreDamaged:
    return StoreDamaged(
        f"{key}: {problem}\n"
        "    → bring the object back (an older version, a copy of the bucket); or, on a machine that has a whole "
        "working copy of the run, continue it in another place: see docs/remote.md"
    )


def read_state(store: Store) -> State:
    """What a store holds; nothing was ever committed if the number is 0.

    Raises:
        StoreDamaged: commits are missing or damaged.
    """
    while True:
        snapshots, log = _numbers(store.names(SNAPSHOTS)), _numbers(store.names(LOG))
        try:
            return _state_of(store, snapshots, log)
        except StoreDamaged:
            # Whoever works on the run may have put its commits together while they were read.
            if max(_numbers(store.names(SNAPSHOTS)), default=0) == max(snapshots, default=0):
                raise


def _state_of(store: Store, snapshots: Sequence[int], log: Iterable[int]) -> State:
    state = State()
    if snapshots:
        key = snapshot_key(max(snapshots))
        state = _decode_snapshot(_present(store, key), key)
    later = sorted(number for number in log if number > state.number)
    for before, number in itertools.pairwise((state.number, *later)):
        if number != before + 1:
            raise damaged(log_key(before + 1), "this commit is missing, and there are later ones")
    for key, data in _objects(store, [log_key(number) for number in later]):
        state = decode_commit(data, key, state)
    return state


def _objects(store: Store, keys: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Objects in order, a few of which are read at the same time."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            yield from zip(some, pool.map(partial(_present, store), some), strict=True)


def _present(store: Store, key: str) -> bytes:
    try:
        return store.read(key)
    except Absent:
        raise damaged(key, "it was listed, and is gone") from None


def _numbers(keys: Iterable[str]) -> list[int]:
    names = (key.rpartition("/")[2] for key in keys)
    return [int(name) for name in names if name.isdecimal()]
