"""Files of rows in the usual shapes → `Sample`.

Read: what `row_files` reads, holding the paper's `{"instruction", "output"}`, Alpaca
(`instruction` + `input`), `messages`, ShareGPT `conversations`, `prompt` / `response`, or `problem` / `answer`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from easydistill.data.messages import Message
from easydistill.data.records import IdAssigner, Rejection, Sample
from easydistill.data.row_files import BrokenRow, MalformedRow, has_lone_surrogates, own_id, parse_rows
from easydistill.errors import DataError

SHAPES = (
    'rows are {"instruction": …, "output": …}, {"messages": [{"role": …, "content": …}]} or '
    '{"conversations": [{"from": …, "value": …}]}'
)
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "tool": "tool",
    "function_call": "assistant",
    "observation": "tool",
}
_ROLES = {"system", "user", "assistant", "tool", "developer"}
_PROMPT_KEYS = ("instruction", "prompt", "question", "query")
_LAST_RESORT = "problem"
"""EasyDistill 2's key of a prompt for chains of thought; beside another prompt it is an ordinary field."""
_ANSWER_KEYS = ("output", "response", "answer", "completion")
_BEFORE_ANSWER = ("output", "response", "messages", "conversations")
"""Keys that take precedence over `answer` for a row's chat."""
CHAT_KEYS = frozenset(
    (*_PROMPT_KEYS, *_ANSWER_KEYS, "id", "input", "system", "history", "messages", "conversations", "reasoning_content")
)
ROW = "_row"
"""Key in `Sample.meta` of the row's number in its file, from 1; not written."""


def read_samples(
    path: str | Path, *, labelled: bool | None, limit: int | None = None
) -> tuple[list[Sample], list[Rejection]]:
    """Read rows, giving each its id. A row's other fields are kept in `Sample.meta`, and written again.

    Args:
        path: of one file or several; see `row_files`.
        labelled: whether rows must end with an answer. If False, answers in the file are dropped; if None, rows are
            taken as they are.
        limit: read only this many rows.

    Returns:
        The samples, and a rejection for each row that has none of the known shapes.

    Raises:
        DataError: the file cannot be read at all, or no row of it can.
    """
    ids = IdAssigner()
    samples: list[Sample] = []
    rejected: list[Rejection] = []

    def parse(row: Any) -> list[Message]:
        messages = messages_of(row)
        _check(messages, labelled=labelled is True)
        return messages

    for number, row, messages in parse_rows(path, parse, ids, limit):
        if isinstance(messages, Rejection):
            rejected.append(messages)
            continue
        while labelled is False and messages[-1]["role"] == "assistant":
            messages.pop()
        identity = ids.assign(messages, own_id(row))
        samples.append(Sample(identity, tuple(messages), {ROW: number, **_other_fields(row)}))
    if not samples and not rejected:
        raise DataError(f"{path}: there are no rows in it; {SHAPES}")
    if not samples:
        raise DataError(f"{path}: none of its {len(rejected)} rows can be used; {SHAPES}\n    {rejected[0].detail}")
    return samples, rejected


def _other_fields(row: Any) -> dict[str, Any]:
    """A row's fields beside its chat. An `answer` beside another one (`output`, `messages` …) is the final answer."""
    if not isinstance(row, dict):
        return {}
    fields = {str(name): value for name, value in row.items() if name not in CHAT_KEYS and value is not None}
    if row.get("answer") is not None and any(row.get(name) is not None for name in _BEFORE_ANSWER):
        fields.setdefault("final_answer", row["answer"])
    return fields


def messages_of(row: Any) -> list[Message]:
    """The chat of a row of any known shape; its answer, if there is one, is the last message.

    Raises:
        MalformedRow: it has none of the known shapes.
    """
    if isinstance(row, BrokenRow):
        raise MalformedRow(row.problem)
    if isinstance(row, str):
        row = {"instruction": row}
    if not isinstance(row, dict):
        raise MalformedRow(f"a row is an object, not {type(row).__name__}")
    if row.get("messages") is not None:
        return _from_messages(row["messages"])
    if row.get("conversations") is not None:
        return _from_sharegpt(row)
    return _from_instruction(row)


def _from_messages(value: Any) -> list[Message]:
    if not isinstance(value, list | tuple) or not value:
        raise MalformedRow("`messages` must be a list that is not empty")
    messages: list[Message] = []
    for item in value:
        role = item.get("role") if isinstance(item, dict) else None
        if not isinstance(role, str) or role not in _ROLES:
            raise MalformedRow(f"a message needs a role (one of {', '.join(sorted(_ROLES))})")
        if not isinstance(item.get("content"), str):
            raise MalformedRow(f"the content of the {role} message is not text")
        messages.append(_message(role, item["content"], item))
    return messages


def _message(role: str, content: str, source: dict[str, Any]) -> Message:
    """A message, with the `reasoning_content` of its source if it has one."""
    message: Message = {"role": role, "content": content}
    if isinstance(source.get("reasoning_content"), str) and source["reasoning_content"]:
        message["reasoning_content"] = source["reasoning_content"]
    return message


def _from_sharegpt(row: dict[str, Any]) -> list[Message]:
    turns = row["conversations"]
    if not isinstance(turns, list | tuple) or not turns:
        raise MalformedRow("`conversations` must be a list that is not empty")
    messages = _system(row)
    for turn in turns:
        if not isinstance(turn, dict):
            raise MalformedRow("a turn of `conversations` is not an object")
        if "role" in turn and "from" not in turn:
            turn = {"from": turn["role"], "value": turn.get("content")}
        role = _SHAREGPT_ROLES.get(str(turn.get("from", "")).lower())
        if role is None:
            raise MalformedRow(f"a turn of `conversations` is from {turn.get('from')!r}")
        if not isinstance(turn.get("value"), str):
            raise MalformedRow("the value of a turn is not text")
        messages.append({"role": role, "content": turn["value"]})
    return messages


def _from_instruction(row: dict[str, Any]) -> list[Message]:
    key = next((name for name in (*_PROMPT_KEYS, _LAST_RESORT) if row.get(name) is not None), None)
    if key is None:
        found = ", ".join(list(map(str, row))[:8]) or "nothing"
        raise MalformedRow(f"no `instruction`, `messages` or `conversations` in it (it has: {found})")
    if not isinstance(row[key], str):
        raise MalformedRow(f"`{key}` is not text")
    content: str = row[key]
    extra = _optional_text(row, "input")
    if extra.strip():
        content = f"{content}\n\n{extra}"
    return [*_system(row), *_history(row), {"role": "user", "content": content}, *_answer(row)]


def _history(row: dict[str, Any]) -> list[Message]:
    history = row.get("history") or []
    messages: list[Message] = []
    for turn in history if isinstance(history, list | tuple) else [None]:
        if not (isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(part, str) for part in turn)):
            raise MalformedRow("`history` must be pairs of texts")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return messages


def _answer(row: dict[str, Any]) -> list[Message]:
    key = next((name for name in _ANSWER_KEYS if row.get(name) is not None), None)
    if key is None:
        return []
    content = row[key]
    if isinstance(content, int | float) and not isinstance(content, bool):
        content = str(content)
    if not isinstance(content, str):
        raise MalformedRow(f"`{key}` is not text")
    return [_message("assistant", content, row)]


def _optional_text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise MalformedRow(f"`{key}` is not text")
    return value or ""


def _system(row: dict[str, Any]) -> list[Message]:
    text = _optional_text(row, "system")
    return [{"role": "system", "content": text}] if text.strip() else []


def refuse_lone_surrogates(messages: Iterable[Message]) -> None:
    """Raise `MalformedRow` if a message contains half of a surrogate pair."""
    if any(has_lone_surrogates(text) for message in messages for text in message.values() if isinstance(text, str)):
        raise MalformedRow("its text contains half of a surrogate pair")


def _check(messages: list[Message], *, labelled: bool) -> None:
    refuse_lone_surrogates(messages)
    users = [message for message in messages if message["role"] == "user"]
    if not users:
        raise MalformedRow("there is no user message")
    if not users[-1]["content"].strip():
        raise MalformedRow("the instruction is empty")
    if labelled and messages[-1]["role"] != "assistant":
        raise MalformedRow("there is no answer to train on")
    if labelled and not messages[-1]["content"].strip():
        raise MalformedRow("the answer is empty")
