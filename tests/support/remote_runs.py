"""Runs in object stores that are killed together with their machine's disk."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.errors import StoreDamaged
from easydistill.remote.history import State, read_state
from easydistill.remote.store import Store
from tests.support.fault_server import Running
from tests.support.jobs import start

CONCURRENCY = 4
JOURNAL = "stages/1-label/journal.jsonl"


def stored_answers(url: str, options: dict[str, Any]) -> set[str]:
    """The prompts whose answers the store has."""
    store = Store(url, options)
    state = _state(store)
    data = b"".join(
        store.read(part.key, part.offset, part.offset + part.length) for part in state.files.get(JOURNAL, ())
    )
    lines = data.split(b"\n")[:-1]
    found = [record for line in lines for record in json.loads(line) if record["kind"] == "completion"]
    return {record["text"].removeprefix("answer to: ") for record in found}


@dataclass(frozen=True)
class Moment:
    """When a command is killed: after so many more requests, or more commits, and a little later."""

    requests: int = 0
    commits: int = 0
    labelled: bool = False
    """Not before the store has the complete label stage."""
    seconds: float = 0.0


def torture(
    config: Path, url: str, options: dict[str, Any], server: Running, kills: Sequence[Moment]
) -> dict[str, Any]:
    """Run; kill -9 and remove the machine's disk at each moment; then run to the end.

    Returns:
        `stored`: how many answers the store had at each kill; `again`: answers that the store had and that were asked
        for again; `out`: what the last command printed.
    """
    job = json.loads(config.read_text())
    working, store = Path(job["storage"]["working_directory"]), Store(url, options)
    stored_at_kills: list[int] = []
    again: set[str] = set()
    counted: dict[str, int] = {}
    for moment in kills:
        process = start(config)
        if not _await(process, moment, store, server):
            break
        process.kill()
        process.communicate()
        shutil.rmtree(working, ignore_errors=True)
        stored = stored_answers(url, options)
        stored_at_kills.append(len(stored))
        again |= _asked_again(server, counted)
        counted = {text: count for text, count in server.stats()["attempts"].items() if text in stored}
    process = start(config)
    out, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, out
    again |= _asked_again(server, counted)
    return {"stored": stored_at_kills, "again": again, "out": out}


def _await(process: subprocess.Popen[str], moment: Moment, store: Store, server: Running) -> bool:
    """Wait for a moment; False if the command has ended before."""
    asks_store = moment.commits or moment.labelled
    requests, commits = _asked(server), _state(store).number if asks_store else 0
    while process.poll() is None:
        # The store's server is slow, so it is asked last, and only if that matters.
        if _asked(server) >= requests + moment.requests and (not asks_store or _is_far(_state(store), moment, commits)):
            time.sleep(moment.seconds)
            return True
        time.sleep(0.05)
    return False


def _is_far(state: State, moment: Moment, commits: int) -> bool:
    enough = state.number >= commits + moment.commits
    return enough and (not moment.labelled or "stages/1-label/manifest.json" in state.files)


def _asked(server: Running) -> int:
    return sum(server.stats()["attempts"].values())


def _state(store: Store) -> State:
    """What the store holds, while somebody puts its commits together."""
    for _ in range(20):
        with contextlib.suppress(StoreDamaged):
            return read_state(store)
    raise AssertionError("the store was never whole")


def _asked_again(server: Running, counted: dict[str, int]) -> set[str]:
    asked = server.stats()["attempts"]
    return {text for text, count in counted.items() if asked[text] > count}
