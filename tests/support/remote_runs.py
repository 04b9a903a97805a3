"""Runs in object stores that are killed together with their machine's disk."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

from tests.support.fault_server import Running
from tests.support.jobs import start

from easydistill.remote.history import read_state
from easydistill.remote.store import Store

CONCURRENCY = 4
JOURNAL = "stages/1-label/journal.jsonl"


def stored_answers(url: str, options: dict[str, Any]) -> set[str]:
    """The prompts whose answers the store has."""
    store = Store(url, options)
    state = read_state(store)
    data = b"".join(
        store.read(part.key, part.offset, part.offset + part.length) for part in state.files.get(JOURNAL, ())
    )
    lines = data.split(b"\n")[:-1]
    found = [record for line in lines for record in json.loads(line) if record["kind"] == "completion"]
    return {record["text"].removeprefix("answer to: ") for record in found}


def torture(
    config: Path, url: str, options: dict[str, Any], server: Running, kills: int, longest: float, seed: int
) -> dict[str, Any]:
    """Run; kill -9 at a random moment and remove the machine's disk, `kills` times; then run to the end.

    Returns:
        `stored`: how many answers the store had at each kill; `again`: answers that the store had and that were asked
        for again; `out`: what the last command printed.
    """
    job = json.loads(config.read_text())
    working, generator = Path(job["storage"]["working_directory"]), random.Random(seed)
    stored_at_kills: list[int] = []
    again: set[str] = set()
    counted: dict[str, int] = {}
    while True:
        process = start(config)
        deadline = time.monotonic() + generator.uniform(longest / 3, longest)
        while process.poll() is None and (time.monotonic() < deadline or len(stored_at_kills) >= kills):
            time.sleep(0.02)
        if process.poll() is not None:
            out, _ = process.communicate()
            assert process.returncode == 0, out
            break
        process.kill()
        process.communicate()
        shutil.rmtree(working, ignore_errors=True)
        stored = stored_answers(url, options)
        stored_at_kills.append(len(stored))
        again |= _asked_again(server, counted)
        counted = {text: count for text, count in server.stats()["attempts"].items() if text in stored}
    again |= _asked_again(server, counted)
    return {"stored": stored_at_kills, "again": again, "out": out}


def _asked_again(server: Running, counted: dict[str, int]) -> set[str]:
    asked = server.stats()["attempts"]
    return {text for text, count in counted.items() if asked[text] > count}
