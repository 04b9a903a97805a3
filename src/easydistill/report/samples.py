"""Samples of what a stage wrote and rejected. They are drawn by the hash of the row's id, so they are always the same.

Files are read one row at a time and only the drawn rows stay in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from bisect import insort
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from easydistill.asking.outputs import LABELED_JSON, LABELED_PARQUET
from easydistill.data.row_files import rows_of
from easydistill.data.tables import IMAGES
from easydistill.engine.stage import REJECTED
from easydistill.errors import DataError
from easydistill.methods.shared.pairs import SHOWN_PAIRS
from easydistill.report.document import Sample
from easydistill.report.thumbnails import thumbnails
from easydistill.report.values import as_dict, as_int, as_text, json_lines, shown

KEPT_SHOWN = 5
REJECTED_SHOWN = 3
"""Per reason."""
TURN_LIMIT = 8000
"""Characters of a message that are shown at most."""
FIELD_LIMIT = 160
FIELDS_SHOWN = 12
_TOOLS = frozenset({"tools", "tool_calls"})
_CHAT_FIELDS = _TOOLS | {"id", "instruction", "output", "reasoning_content", "messages", "operator", IMAGES}
_PAIR_FIELDS = _TOOLS | {"id", "prompt", "chosen", "rejected", "operator", IMAGES}

T = TypeVar("T")


@dataclass(frozen=True)
class Turn:
    """A message of a chat."""

    role: str
    text: str


Turns = tuple[Turn, ...]


def turns_of(value: Any) -> Turns:
    """The messages of a prompt, which is a text or a list of messages; none for anything else."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    return tuple(_turn(message) for message in value if isinstance(message, dict)) if isinstance(value, list) else ()


def _turn(message: dict[str, Any]) -> Turn:
    return Turn(as_text(message.get("role")), shown(_said(message), TURN_LIMIT))


def _said(message: dict[str, Any]) -> Any:
    """What a message says: its content, and each call on a line of its own, such as `count_legs({"animal": "ant"})`."""
    content = message.get("content")
    if isinstance(content, list):
        # A multimodal message: text parts are shown, the others named.
        parts = map(as_dict, content)
        content = "\n".join(as_text(part.get("text")) or f"[{as_text(part.get('type')) or 'part'}]" for part in parts)
    calls = message.get("tool_calls")
    listed = [_call(as_dict(call)) for call in calls] if isinstance(calls, list) else []
    return "\n".join(part for part in (as_text(content), *listed) if part) if listed else content


def _call(call: dict[str, Any]) -> str:
    """A call as people read it, from our own spelling or OpenAI's."""
    function = as_dict(call.get("function")) or call
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f"{as_text(function.get('name'))}({text})"


def _tool_names(tools: Any) -> list[str]:
    """The names of a chat's tools, which may be written as JSON text."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError:
            return []
    described = map(as_dict, tools) if isinstance(tools, list) else ()
    return [as_text((as_dict(tool.get("function")) or tool).get("name")) for tool in described]


def optional_text(value: Any) -> str | None:
    return None if value is None else shown(value, TURN_LIMIT)


def draw(rows: Iterable[T], most: int, identity: Callable[[T], str], group: Callable[[T], str]) -> dict[str, list[T]]:
    """Of each group, the rows whose ids have the `most` smallest hashes; of rows with the same id, the first ones."""
    drawn: dict[str, list[tuple[bytes, T]]] = {}
    for row in rows:
        digest = hashlib.sha256(identity(row).encode("utf-8", "surrogatepass")).digest()
        held = drawn.setdefault(group(row), [])
        if len(held) < most or digest < held[-1][0]:
            insort(held, (digest, row), key=itemgetter(0))
            del held[most:]
    return {name: [row for _, row in held] for name, held in drawn.items()}


def _id(row: dict[str, Any]) -> str:
    return as_text(row.get("id"))


def _reason(row: dict[str, Any]) -> str:
    return as_text(row.get("reason"))


def kept_rows(folder: Path) -> tuple[Sample, ...]:
    """At most `KEPT_SHOWN` rows of a stage's output; none if it has no readable output."""
    drawn = draw(_rows(folder), KEPT_SHOWN, _id, lambda _: "")
    return tuple(map(_kept, drawn.get("", ())))


def rows_with_images(folder: Path, run: Path) -> tuple[Sample, ...]:
    """At most `KEPT_SHOWN` rows with images of a stage's output, with thumbnails of these.

    Args:
        run: the run directory.
    """
    shown = (row for row in _rows(folder) if isinstance(row.get(IMAGES), list) and row[IMAGES])
    drawn = draw(shown, KEPT_SHOWN, _id, lambda _: "").get("", ())
    return tuple(replace(_kept(row), images=thumbnails(map(as_text, row[IMAGES]), folder, run)) for row in drawn)


def rejected_rows(folder: Path, reasons: Collection[str]) -> dict[str, tuple[Sample, ...]]:
    """At most `REJECTED_SHOWN` rejected rows of a stage for each of these reasons."""
    rows = (row for row in json_lines(folder / REJECTED) if _reason(row) in reasons) if reasons else ()
    drawn = draw(rows, REJECTED_SHOWN, _id, _reason)
    return {
        reason: tuple(rejected_row(row, TURN_LIMIT, received(row.get("raw"))) for row in drawn.get(reason, ()))
        for reason in reasons
    }


def rejected_row(row: dict[str, Any], limit: int, raw: Any) -> Sample:
    """A line of `rejected.jsonl`, its texts cut after `limit` characters."""
    attempts = as_int(row.get("attempts")) or 1
    marks = (("after", f"{attempts:,} attempts"),) if attempts > 1 else ()
    text = shown(raw, limit)
    part = ("", text, "text") if text else ("", "Nothing was received.", "text none")
    return Sample(_id(row), (part,), marks, _reason(row), shown(row.get("detail"), limit))


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    array = next((folder / name for name in (LABELED_JSON, SHOWN_PAIRS) if (folder / name).is_file()), None)
    if array is not None:
        # A JSON array, as stages write it: one row a line.
        yield from json_lines(array, ",\n")
    elif (folder / LABELED_PARQUET).is_file():
        with contextlib.suppress(DataError):
            yield from rows_of(folder / LABELED_PARQUET)


def _kept(row: dict[str, Any]) -> Sample:
    if isinstance(row.get("prompt"), list) and row.get("chosen") and row.get("rejected"):
        chosen, rejected = (_last(row[side]) for side in ("chosen", "rejected"))
        other = {"text": _side(row["rejected"]), "reasoning": rejected.get("reasoning_content")}
        thought = chosen.get("reasoning_content") or None
        answers = {"Chosen": _side(row["chosen"]), "Rejected": received(other)}
        return _sample(row, turns_of(row["prompt"]), {"Thoughts": thought, **answers}, _PAIR_FIELDS)
    prompt: Any
    texts: dict[str, Any]
    messages = row.get("messages")
    if isinstance(messages, list) and messages:
        last = _last(messages)
        if last.get("role") != "assistant":
            last = {}
        prompt, texts = messages[: -1 if last else None], {"Answer": _said(last)}
    else:
        prompt, texts, last = row.get("instruction"), {"Answer": _said({**row, "content": row.get("output")})}, row
    thought = last.get("reasoning_content") or None
    return _sample(row, turns_of(prompt), {"Thoughts": thought, **texts}, _CHAT_FIELDS)


def _sample(row: dict[str, Any], prompt: Turns, texts: dict[str, Any], known: Collection[str]) -> Sample:
    """A row with its prompt, those of the texts that it has, and its other fields."""
    parts = [(turn.role if len(prompt) > 1 else "", turn.text, "text") for turn in prompt[:-1]]
    if prompt:
        parts.append((prompt[-1].role if len(prompt) > 1 else "", prompt[-1].text, "text asked"))
    else:
        parts.append(("", "n/a: the row has no readable prompt", "text none"))
    parts += [(name, shown(text, TURN_LIMIT), "text") for name, text in texts.items() if text is not None]
    tools = _tool_names(row.get("tools"))
    marks = (("tools", ", ".join(tools)),) if tools else ()
    return Sample(_id(row), tuple(parts), (*marks, *_fields(row, known)))


def _side(messages: Any) -> str:
    """An answer of a pair: what its message says, or, if it has several, all of them with their roles."""
    if isinstance(messages, list) and len(messages) > 1:
        return received(messages)
    return as_text(_said(_last(messages)))


def _last(messages: Any) -> dict[str, Any]:
    return as_dict(messages[-1]) if isinstance(messages, list) and messages else {}


def _fields(row: dict[str, Any], known: Collection[str]) -> tuple[tuple[str, str], ...]:
    found = [(name, value) for name, value in row.items() if name not in known and value is not None]
    return tuple((name, _field(value)) for name, value in found[:FIELDS_SHOWN])


def _field(value: Any) -> str:
    """A field's value on one line; a list as its items."""
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        value = ", ".join(map(as_text, value))
    return shown(value, FIELD_LIMIT)


def received(raw: Any) -> str:
    """What was received for a rejected row: a text, an answer with its reasoning, several of them, or a chat."""
    if isinstance(raw, dict) and (isinstance(raw.get("text"), str) or raw.get("tool_calls")):
        return _answer_received(raw)
    items = list(map(as_dict, raw)) if isinstance(raw, list) else []
    if items and all("role" in item for item in items):
        return "\n\n".join(f"[{turn.role}]\n{turn.text}" for turn in turns_of(raw))
    if any("text" in item for item in items):
        return "\n\n".join(f"[{number}]\n{received(item)}" for number, item in enumerate(raw, start=1))
    return as_text(raw)


def _answer_received(raw: dict[str, Any]) -> str:
    thought, text = as_text(raw.get("reasoning")), as_text(_said({**raw, "content": raw.get("text")}))
    return f"[thoughts]\n{thought}\n\n[answer]\n{text}" if thought else text
