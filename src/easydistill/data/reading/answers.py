"""The answer of a row with columns: text, thoughts, calls, or messages; and the known final answer beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from easydistill.data.messages import Message
from easydistill.data.reading import keys
from easydistill.data.reading.calls import are_calls, calls_of
from easydistill.data.reading.turns import turns_of
from easydistill.data.reading.values import as_list, as_object, as_turns, from_json_text, not_text
from easydistill.data.row_files import MalformedRow


@dataclass
class Answered:
    """The messages after a prompt, and the columns that they were read from."""

    messages: list[Message]
    used: set[str]


def answer_of(row: dict[str, Any]) -> Answered:
    """The answer of a row; no messages if it has none.

    Raises:
        MalformedRow: it is no text.
    """
    thoughts, thought_column = _thoughts(row)
    used = {thought_column} if thought_column is not None else set()
    key = _column(row, thoughts)
    if key is None:
        return _called(row, used, thoughts)
    value = row[key]
    if not isinstance(value, str) and as_turns(value):
        return Answered(_with_thoughts(turns_of(value, key).messages, thoughts), used | {key})
    message: Message = {"role": "assistant", "content": _text(value, key)}
    called = _called(row, set(), "", beside=True)
    if called.messages:
        message["tool_calls"] = called.messages[0]["tool_calls"]
    return Answered(_with_thoughts([message], thoughts), used | {key} | called.used)


def _text(value: Any, key: str) -> str:
    """An answer as text: a text, a number, or a list of one text."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    listed = as_list(value)
    if listed is None or len(listed) != 1 or not isinstance(listed[0], str):
        raise MalformedRow(not_text(key, value, "answer"))
    return listed[0]


def _column(row: dict[str, Any], thoughts: str) -> str | None:
    names = (*keys.ANSWERS, *keys.CHAINS)
    found = next((name for name in names if row.get(name) is not None), None)
    if found is None and thoughts and isinstance(row.get("content"), str):
        return "content"
    return found


def _called(row: dict[str, Any], used: set[str], thoughts: str, *, beside: bool = False) -> Answered:
    """The answer that is tool calls (xLAM), or, with `beside`, the calls after a text."""
    for name in keys.CALLS:
        value = row.get(name)
        if value is None or (name == "answers" and (beside or not are_calls(value))):
            continue
        calls = calls_of(value)
        if calls:
            message: Message = {"role": "assistant", "content": "", "tool_calls": calls}
            return Answered(_with_thoughts([message], thoughts), used | {name})
    text = row.get("answers")
    if not beside and isinstance(text, str) and not _is_empty_list(text):
        # xLAM and its kin say in words why no tool fits.
        return Answered(_with_thoughts([{"role": "assistant", "content": text}], thoughts), used | {"answers"})
    return Answered([], used)


def _is_empty_list(text: str) -> bool:
    return text.strip() in ("[]", "")


def _thoughts(row: dict[str, Any]) -> tuple[str, str | None]:
    for name in keys.THOUGHTS:
        if is_thought(name, row.get(name)):
            return str(row[name]), name
    return "", None


def is_thought(name: str, value: Any) -> bool:
    """Whether a column of that name holds thoughts, and not whether a model thought."""
    return isinstance(value, str) and value != "" and (name == keys.THOUGHTS[0] or _says_more(value))


def _says_more(value: str) -> bool:
    words = value.strip().lower()
    return bool(words) and words not in keys.FLAGS


def _with_thoughts(messages: list[Message], thoughts: str) -> list[Message]:
    if thoughts and messages and "reasoning_content" not in messages[-1]:
        messages[-1]["reasoning_content"] = thoughts
    return messages


def final_answer(row: dict[str, Any], used: set[str]) -> Any:
    """The known answer of a row: of a column of that meaning, or `answer` beside a chain; None if there is none."""
    given = row.get("final_answer")
    if given is not None:
        return given
    if row.get("answer") is not None and "answer" not in used and _has_chain(row):
        return row["answer"]
    judged = as_object(row.get("reward_model"))
    truths = [*(row.get(name) for name in keys.FINALS[1:]), judged.get("ground_truth") if judged is not None else None]
    return next((known for truth in truths if (known := _known(truth)) is not None), None)


def _has_chain(row: dict[str, Any]) -> bool:
    return any(row.get(name) is not None for name in (*keys.ANSWERS, *keys.CHATS, "solution"))


def _known(value: Any) -> Any:
    """The final answer that a value is: a number or a text, or the only text of a list in JSON. None for others, such
    as the constraints that instruction-following data holds in their place."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        return None
    found = from_json_text(value)
    if isinstance(found, list) and len(found) == 1 and isinstance(found[0], str):
        return found[0]
    return None if isinstance(found, dict) or (isinstance(value, str) and not value.strip()) else value
