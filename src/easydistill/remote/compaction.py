"""Commits put together, so that a run of days is neither thousands of objects nor slow to fetch.

The bytes that commits carry become parts of their own. Of parts put together, `FAN` neighbours of one level become one
of the next: a file of n pieces has at most FAN · log(n) parts, and each of its bytes is sent log(n) times.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from easydistill.remote.history import LOG, PARTS, Part, Parts, State, encode_snapshot, sha256, snapshot_key
from easydistill.remote.store import Store

FAN = 8
COMMITS = 64
"""Commits after which they are put together."""
_LARGEST = 64 << 20
"""Parts of this size stay as they are."""
Attempt = Callable[[Callable[[], Any]], Any]


def is_due(state: State) -> bool:
    return state.number - state.since >= COMMITS


def compacted(store: Store, state: State, directory: Path, owner: str, attempt: Attempt) -> State:
    """Write a snapshot of a state that needs no commit; returns the state with its new parts.

    The bytes are those of the working directory, if they still are what was sent, else the store's.
    """
    files = dict(state.files)
    for path, parts in state.files.items():
        new, offset, number = [], 0, 0
        for level, run in _runs(parts):
            length = sum(part.length for part in run)
            if len(run) > 1 or run[0].key.startswith(f"{LOG}/"):
                key = f"{PARTS}/{state.number:010d}-{owner}/{path}.{number}"
                data = _bytes(store, run, directory / path, offset, attempt)
                attempt(lambda key=key, data=data: store.put(key, data))  # type: ignore[misc]
                new.append(Part(key, 0, length, sha256(data), level))
                number += 1
            else:
                new += run
            offset += length
        files[path] = tuple(new)
    result = replace(state, files=files, since=state.number)
    attempt(lambda: store.put(snapshot_key(state.number), encode_snapshot(result)))
    return result


def _runs(parts: Parts) -> list[tuple[int, list[Part]]]:
    """Levels, and neighbours that become one part of that level; a part that stays is alone."""
    runs: list[tuple[int, list[Part]]] = []
    in_commits = False
    for part in parts:
        before, in_commits = in_commits, part.key.startswith(f"{LOG}/")
        if before and in_commits and _size(runs[-1:]) < _LARGEST:
            runs[-1][1].append(part)
        else:
            runs.append((0 if in_commits else part.level, [part]))
    while _is_full(runs[-FAN:]):
        runs[-FAN:] = [(runs[-1][0] + 1, [part for _, run in runs[-FAN:] for part in run])]
    return runs


def _is_full(runs: list[tuple[int, list[Part]]]) -> bool:
    return len(runs) == FAN and len({level for level, _ in runs}) == 1 and _size(runs) <= _LARGEST


def _size(runs: list[tuple[int, list[Part]]]) -> int:
    return sum(part.length for _, run in runs for part in run)


def _bytes(store: Store, run: list[Part], path: Path, offset: int, attempt: Attempt) -> bytes:
    found = []
    for part in run:
        data = b""
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(offset)
            data = file.read(part.length)
        if sha256(data) != part.sha256:
            read = (part.key, part.offset, part.offset + part.length)
            data = attempt(lambda read=read: store.read(*read))  # type: ignore[misc]
        found.append(data)
        offset += part.length
    return b"".join(found)
