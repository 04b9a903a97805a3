"""Preference pairs, two answers to one prompt of which one is better ↔ files.

Read: JSON arrays, JSON Lines and Parquet whose rows have `chosen` and `rejected`, each a text, a message or a list of
messages, after a `prompt` (a text or messages), an `instruction` (with `input`, `system`, `history`), or, without
either, after the messages that both lists begin with. A row may have its own `beta`. Written: `prompt`, `chosen` and
`rejected` as lists of messages, as TRL and `datasets` read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easydistill.config.base import BETAS
from easydistill.data.files import replacing
from easydistill.data.formats import parquet_table, write_json_rows, written_meta
from easydistill.data.messages import Message
from easydistill.data.numbers import as_float
from easydistill.data.records import IdAssigner, Rejection, Sample, content_hash
from easydistill.data.row_files import MalformedRow, own_id, parse_rows
from easydistill.errors import DataError

PAIR_SHAPES = 'rows are {"prompt": …, "chosen": …, "rejected": …}, each a text or messages; "beta" is optional'
_ANSWERS = ("chosen", "rejected")
_PROMPTS = ("prompt", "instruction", "question", "query", "input", "system", "history")


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt."""

    id: str
    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message
    beta: float | None = None
    """The pair's own β in the loss; None uses the config's."""
    meta: dict[str, Any] = field(default_factory=dict)
    """The row's other fields: scores, margin, gap, the models that wrote the answers."""

    @property
    def prompt_hash(self) -> str:
        return content_hash(list(self.prompt))


def read_preferences(path: Path, *, limit: int | None = None) -> tuple[list[Preference], list[Rejection]]:
    """Read pairs, giving each its id.

    Args:
        path: `.json`, `.jsonl` or `.parquet`.
        limit: read only this many rows.

    Returns:
        The pairs, and a rejection for each row that is not a pair.

    Raises:
        DataError: the file cannot be read at all, or no row of it is a pair.
    """
    ids = IdAssigner()
    pairs: list[Preference] = []
    rejected: list[Rejection] = []
    for _, row, parsed in parse_rows(path, _pair, ids, limit):
        if isinstance(parsed, Rejection):
            rejected.append(parsed)
            continue
        prompt, chosen, worse, beta = parsed
        identity = ids.assign([prompt, chosen, worse], own_id(row))
        known = {*_ANSWERS, *_PROMPTS, "messages", "beta", "id"}
        meta = {str(name): value for name, value in row.items() if name not in known and value is not None}
        pairs.append(Preference(identity, tuple(prompt), chosen, worse, beta, meta))
    if not pairs:
        first = f"\n    {rejected[0].detail}" if rejected else ""
        raise DataError(f"{path}: none of its {len(rejected)} rows is a pair; {PAIR_SHAPES}{first}")
    return pairs, rejected


def _pair(row: Any) -> tuple[list[Message], Message, Message, float | None]:
    if not isinstance(row, dict) or any(row.get(name) is None for name in _ANSWERS):
        # Raises the more exact error for a line that is not JSON or a row that is not an object.
        messages_of(row)
        raise MalformedRow("there is no `chosen` and `rejected`")
    chosen, rejected = (_answer_side(row[name], name) for name in _ANSWERS)
    prompt = _prompt(row)
    if prompt is None:
        prompt = _common(chosen, rejected)
    # Both sides may repeat the prompt, or hold the answer alone.
    answers = [_after(prompt, side, name) for side, name in zip((chosen, rejected), _ANSWERS, strict=True)]
    refuse_lone_surrogates([*prompt, *answers])
    if not any(message["role"] == "user" and message["content"].strip() for message in prompt):
        raise MalformedRow("there is no prompt")
    if not all(answer["content"].strip() for answer in answers):
        raise MalformedRow("an answer is empty")
    if answers[0] == answers[1]:
        raise MalformedRow("both answers are the same")
    return prompt, answers[0], answers[1], _beta(row.get("beta"))


def _answer_side(value: Any, name: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    try:
        return messages_of({"messages": [value] if isinstance(value, dict) else value})
    except MalformedRow as problem:
        raise MalformedRow(f"`{name}`: {problem}") from None


def _prompt(row: dict[str, Any]) -> list[Message] | None:
    """The messages before both answers; None if only the lists of the answers contain them."""
    asked = row.get("prompt")
    if isinstance(asked, list | tuple):
        return messages_of({"messages": asked})
    plain = {name: row[name] for name in _PROMPTS if row.get(name) is not None}
    if not set(plain) - {"input", "system", "history"}:
        return messages_of({"messages": row["messages"]}) if row.get("messages") else None
    return messages_of(plain)


def _common(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    if min(len(chosen), len(rejected)) < 2 or chosen[:-1] != rejected[:-1]:
        raise MalformedRow("there is no `prompt`, and `chosen` and `rejected` do not begin with the same messages")
    return chosen[:-1]


def _after(prompt: list[Message], side: list[Message], name: str) -> Message:
    if len(side) > 1 and side[:-1] != prompt:
        raise MalformedRow(f"`{name}` does not begin with the prompt")
    if side[-1]["role"] != "assistant":
        raise MalformedRow(f"`{name}` does not end with the assistant's message")
    return side[-1]


def _beta(value: Any) -> float | None:
    if value is None:
        return None
    low, high = BETAS
    number = as_float(value)
    if number is None or not low <= number <= high:
        raise MalformedRow(f"`beta` is {str(value)[:40]!r}, not a number from {low:g} to {high:g}")
    return number


def as_preference(sample: Sample) -> Preference:
    """The pair of a chat that ends with the chosen answer; `rejected` (and perhaps `beta`) are in its `meta`."""
    meta = {name: value for name, value in written_meta(sample).items() if name not in {"rejected", "beta"}}
    worse, beta = sample.meta["rejected"], sample.meta.get("beta")
    return Preference(sample.id, sample.prompt, sample.messages[-1], worse, beta, meta)


# --- writing ----------------------------------------------------------------------------------------------


def pair_row(pair: Preference) -> dict[str, Any]:
    """A pair as it is written to a file."""
    own = {} if pair.beta is None else {"beta": pair.beta}
    sides = {"chosen": [dict(pair.chosen)], "rejected": [dict(pair.rejected)]}
    return {"id": pair.id, "prompt": [dict(message) for message in pair.prompt], **sides, **own, **pair.meta}


def write_pairs_json(path: Path, pairs: Iterable[Preference]) -> None:
    """Write a JSON array, one pair per line."""
    write_json_rows(path, map(pair_row, pairs))


def write_pairs_parquet(path: Path, pairs: Sequence[Preference]) -> None:
    """Write Parquet; a field whose values have no common type is written as JSON text."""
    import pyarrow.parquet as parquet

    with replacing(path) as temporary:
        parquet.write_table(parquet_table([pair_row(pair) for pair in pairs], ("prompt", *_ANSWERS)), temporary)
