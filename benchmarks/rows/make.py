"""Rows of 600 bytes for the benchmarks of row jobs, in any number: no two files of the same size and seed differ.

`sentences` puts sentences of real problems together, with other numbers; `words` draws words of a short list, so that
no word is rare: the hardest case for a search by words. A twentieth of the rows are copies of others, another twentieth
copies with a few words changed.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import real_data

BYTES = 300
"""Length of a prompt, and of an answer."""
TASKS = ("Math", "Reasoning", "Code Generation", "Writing", "History")


def write_rows(path: Path, count: int, kind: str, seed: int = 0) -> None:
    """Write `count` rows as JSON Lines."""
    with path.open("w", encoding="utf-8") as handle:
        for row in rows(count, kind, seed):
            handle.write(json.dumps(row) + "\n")


def rows(count: int, kind: str, seed: int) -> Iterator[dict[str, object]]:
    """Rows with an id, a task, scores and a chat."""
    pieces = _sentences() if kind == "sentences" else [f"word{number}" for number in range(2000)]
    earlier: list[str] = []
    for number in range(count):
        draw = random.Random(f"{seed}:{number}")
        kept = draw.random()
        text = _text(draw, pieces)
        if earlier and kept < 0.1:
            text = draw.choice(earlier)
            text = text if kept < 0.05 else _changed(draw, text)
        elif number < 10_000 or kept < 0.11:
            earlier.append(text)
        yield {
            "id": f"r{number:08}",
            "instruction": text,
            "output": _text(draw, pieces),
            "task": draw.choice(TASKS),
            **{name: draw.randrange(10) for name in ("informativeness", "helpfulness", "generalisation")},
            "correctness": draw.randrange(2),
            **{name: draw.randrange(10) for name in ("rv", "cd")},
            "correct": draw.randrange(2),
        }


def _sentences() -> list[str]:
    lines = (real_data() / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()
    return [part for line in lines for part in re.split(r"(?<=[.?!])\s+", json.loads(line)["question"])]


def _text(draw: random.Random, pieces: list[str]) -> str:
    parts: list[str] = []
    size = 0
    while size < BYTES:
        part = (
            re.sub(r"\d+", lambda match: str(draw.randrange(2, 1000)), draw.choice(pieces)) if " " in pieces[0] else ""
        )
        parts.append(part or draw.choice(pieces))
        size += len(parts[-1]) + 1
    return " ".join(parts)


def _changed(draw: random.Random, text: str) -> str:
    words = text.split()
    for _ in range(len(words) // 20 + 1):
        words[draw.randrange(len(words))] = draw.choice(words)
    return " ".join(words)
