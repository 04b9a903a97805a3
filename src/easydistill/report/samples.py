"""A few of the rows that a stage kept and rejected: the same ones every time, drawn by the hash of their ids.

Files are gone through a row at a time, so that no more rows are in memory than are shown.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from easydistill.asking.outputs import LABELED_JSON, LABELED_PARQUET
from easydistill.engine.stage import REJECTED
from easydistill.report.turns import TURN_LIMIT, Turn, turns_of
from easydistill.report.values import as_dict, as_int, as_text, json_lines, shown

KEPT_SHOWN = 5
REJECTED_SHOWN = 3
"""Of each reason."""
FIELD_LIMIT = 160
FIELDS_SHOWN = 12
_CHAT_FIELDS = frozenset({"id", "instruction", "output", "reasoning_content", "messages", "operator"})
_PAIR_FIELDS = frozenset({"id", "prompt", "chosen", "rejected", "operator"})

T = TypeVar("T")


@dataclass(frozen=True)
class KeptRow:
    """A row that a stage wrote."""

    id: str
    prompt: tuple[Turn, ...]
    thought: str
    """The model's separate thoughts; empty where there are none."""
    answer: str | None
    """None for a row that is a prompt alone; of a pair, the chosen one."""
    fields: tuple[tuple[str, str], ...]
    """What else the row holds: name and value."""
    rejected: str | None = None
    """The other answer of a pair, with its thoughts."""


@dataclass(frozen=True)
class RejectedRow:
    """A row that a stage did not write."""

    id: str
    detail: str
    attempts: int | None
    raw: str


class Draw(Generic[T]):
    """The `count` rows whose ids have the smallest hashes, of all that are offered."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._offered = 0
        self._heap: list[tuple[int, int, T]] = []

    def offer(self, identity: str, row: T) -> None:
        digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).digest()
        self._offered += 1
        # The largest hash comes first out of the heap; of rows with equal ids, the later one.
        entry = (-int.from_bytes(digest), -self._offered, row)
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def rows(self) -> list[T]:
        return [row for _, _, row in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


def kept_rows(folder: Path) -> tuple[KeptRow, ...]:
    """At most `KEPT_SHOWN` rows of a stage's output; none where it has no readable output."""
    draw: Draw[dict[str, Any]] = Draw(KEPT_SHOWN)
    for row in _rows(folder):
        draw.offer(as_text(row.get("id")), row)
    return tuple(_kept(row) for row in draw.rows())


def rejected_rows(folder: Path, reasons: Collection[str]) -> dict[str, tuple[RejectedRow, ...]]:
    """At most `REJECTED_SHOWN` rejected rows of a stage for each of the reasons."""
    draws: dict[str, Draw[dict[str, Any]]] = {reason: Draw(REJECTED_SHOWN) for reason in reasons}
    for row in json_lines(folder / REJECTED) if draws else ():
        draw = draws.get(as_text(row.get("reason")))
        if draw is not None:
            draw.offer(as_text(row.get("id")), row)
    return {reason: tuple(map(_rejected, draw.rows())) for reason, draw in draws.items()}


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    if (folder / LABELED_JSON).is_file():
        yield from _one_a_line(folder / LABELED_JSON)
    elif (folder / LABELED_PARQUET).is_file():
        import pyarrow as pa
        import pyarrow.parquet as parquet

        try:
            with parquet.ParquetFile(folder / LABELED_PARQUET) as file:
                for batch in file.iter_batches(1024):
                    yield from batch.to_pylist()
        except (OSError, pa.ArrowException):
            return


def _one_a_line(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON array as stages write it, one a line; lines that are none are passed over."""
    with path.open(encoding="utf-8", errors="replace") as handle:
        for line in handle:
            try:
                value = json.loads(line.strip().rstrip(","))
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value


def _kept(row: dict[str, Any]) -> KeptRow:
    if isinstance(row.get("prompt"), list) and row.get("chosen") and row.get("rejected"):
        return _kept_pair(row)
    messages = row.get("messages")
    if isinstance(messages, list) and messages:
        last = as_dict(messages[-1])
        answered = last.get("role") == "assistant"
        prompt = turns_of(messages[:-1] if answered else messages)
        answer, thought = (last.get("content"), last.get("reasoning_content")) if answered else (None, None)
    else:
        prompt, answer, thought = turns_of(row.get("instruction")), row.get("output"), row.get("reasoning_content")
    return KeptRow(
        id=as_text(row.get("id")),
        prompt=prompt,
        thought=shown(thought, TURN_LIMIT),
        answer=None if answer is None else shown(answer, TURN_LIMIT),
        fields=_fields(row, _CHAT_FIELDS),
    )


def _kept_pair(row: dict[str, Any]) -> KeptRow:
    chosen, rejected = (_last(row[side]) for side in ("chosen", "rejected"))
    other = {"text": as_text(rejected.get("content")), "reasoning": rejected.get("reasoning_content")}
    return KeptRow(
        id=as_text(row.get("id")),
        prompt=turns_of(row["prompt"]),
        thought=shown(chosen.get("reasoning_content"), TURN_LIMIT),
        answer=shown(chosen.get("content"), TURN_LIMIT),
        fields=_fields(row, _PAIR_FIELDS),
        rejected=shown(received(other), TURN_LIMIT),
    )


def _last(messages: Any) -> dict[str, Any]:
    return as_dict(messages[-1]) if isinstance(messages, list) and messages else {}


def _fields(row: dict[str, Any], known: Collection[str]) -> tuple[tuple[str, str], ...]:
    found = [(name, value) for name, value in row.items() if name not in known and value is not None]
    return tuple((name, _field(value)) for name, value in found[:FIELDS_SHOWN])


def _field(value: Any) -> str:
    """A field's value on one line; of a list, its items."""
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        value = ", ".join(map(as_text, value))
    return shown(value, FIELD_LIMIT)


def _rejected(row: dict[str, Any]) -> RejectedRow:
    return RejectedRow(
        id=as_text(row.get("id")),
        detail=shown(row.get("detail"), TURN_LIMIT),
        attempts=as_int(row.get("attempts")),
        raw=shown(received(row.get("raw")), TURN_LIMIT),
    )


def received(raw: Any) -> str:
    """What was received for a rejected row: a text, an answer with its thoughts, several of them, or a chat."""
    if isinstance(raw, dict) and isinstance(raw.get("text"), str):
        thought = as_text(raw.get("reasoning"))
        return f"[thoughts]\n{thought}\n\n[answer]\n{raw['text']}" if thought else raw["text"]
    if isinstance(raw, list) and raw and all(isinstance(message, dict) and "role" in message for message in raw):
        return "\n\n".join(f"[{turn.role}]\n{turn.text}" for turn in turns_of(raw))
    if isinstance(raw, list) and any(isinstance(item, dict) and "text" in item for item in raw):
        return "\n\n".join(f"[{number}]\n{received(item)}" for number, item in enumerate(raw, start=1))
    return as_text(raw)
