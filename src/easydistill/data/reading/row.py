"""A row of any known shape → a chat, or several.

`chats_of` is what files are read with; `chat_of` reads one row that holds one chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from easydistill.data.messages import IMAGE_TAG, Message, Tool, ToolCall
from easydistill.data.reading import keys, several
from easydistill.data.reading.answers import Answered, answer_of, final_answer, is_thought
from easydistill.data.reading.calls import parameters_of, tools_of, without_fillers
from easydistill.data.reading.checks import (
    check_chat,
    hint_of,
    refuse_bad,
    refuse_lone_surrogates,
    vote_of,
)
from easydistill.data.reading.columns import under_known_names
from easydistill.data.reading.media import place_images
from easydistill.data.reading.parts import content_of
from easydistill.data.reading.prompts import prompt_of
from easydistill.data.reading.texts import hint_of_text, with_messages
from easydistill.data.reading.turns import Turns, alternating, turns_of, with_system
from easydistill.data.reading.unread import unread_fields
from easydistill.data.reading.values import as_list, as_object, as_turns, is_given, names_of, text_field, without_nulls
from easydistill.data.row_files import BrokenRow, MalformedRow

SHAPES = (
    'rows are {"instruction": …, "output": …}, {"messages": [{"role": …, "content": …}]} or '
    '{"conversations": [{"from": …, "value": …}]}, or dataset.columns names their columns'
)
_THOUGHTS, _SYSTEMS = frozenset(keys.THOUGHTS), frozenset(keys.SYSTEMS)


@dataclass
class RowChat:
    """The chat of a row."""

    messages: list[Message]
    tools: tuple[Tool, ...] = ()
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)
    """The row's fields that the chat does not hold."""
    unread: frozenset[str] = frozenset()
    """Fields among them that could say something of the chat."""


def chats_of(row: Any, *, labelled: bool | None, columns: Mapping[str, str] | None = None) -> list[RowChat]:
    """The chats of a row: one, or one for each of its answers.

    Args:
        labelled: as in `read_samples`.
        columns: names of the row's columns, by what they hold; see `reading/columns.py`.

    Raises:
        MalformedRow: it has none of the known shapes, or cannot be read whole.
    """
    row = fields_of(row)
    hidden: dict[str, Any] = {}
    if columns:
        row, hidden = under_known_names(row, columns)
    if labelled:
        refuse_bad(row)
    row, known_only = _without_reference(row) if labelled is None else (row, {})
    found: list[RowChat] = []
    for one in several.prompts_of(row):
        answers = [(one, {})] if labelled is False else several.rows_of(one)
        for part, known in answers:
            chat = chat_of(part, with_answer=labelled is not False)
            if hidden:
                chat.unread |= unread_fields(hidden, set(), chat.messages)
            chat.rest |= known_only | {name: value for name, value in known.items() if value is not None}
            if labelled is False:
                _drop_answer(chat)
            refuse_lone_surrogates(chat.messages, (chat.tools, chat.template_kwargs))
            check_chat(chat.messages, row, labelled=labelled is True)
            found.append(chat)
    return found


def _without_reference(row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the row without a `solution`, which is the known answer of a problem where rows need not have one; it).

    Beside a final `answer` it is a chain of thought, and so an answer.
    """
    if row.get("solution") is None or row.get("answer") is not None:
        return row, {}
    return {name: value for name, value in row.items() if name != "solution"}, {"solution": row["solution"]}


def fields_of(row: Any) -> dict[str, Any]:
    """The fields of a row; a text is a prompt. Those of an object around a chat are fields like the others.

    Raises:
        MalformedRow: it has none.
    """
    if isinstance(row, BrokenRow):
        raise MalformedRow(row.problem)
    if isinstance(row, str):
        return {"instruction": row}
    if isinstance(row, list) and as_turns(row):
        return {"messages": row}
    if isinstance(row, list):
        raise MalformedRow("a row is an object or a list of messages; an array of rows belongs in a .json file")
    if not isinstance(row, dict):
        raise MalformedRow(f"a row is an object, not {type(row).__name__}")
    for name in keys.WRAPPERS:
        inner = row.get(name)
        if isinstance(inner, dict) and as_turns(inner.get("messages")):
            return {**inner, **{key: value for key, value in row.items() if key != name}}
    return row


def _drop_answer(chat: RowChat) -> None:
    while chat.messages and chat.messages[-1]["role"] == "assistant":
        chat.messages.pop()
    for name in keys.LABELS:
        # It said whether that answer was good.
        if chat.rest.get(name) is not None and vote_of(chat.rest, name) is not None:
            del chat.rest[name]


def chat_of(row: Any, *, with_answer: bool = True) -> RowChat:
    """The chat of a row that holds one; its answer, if there is one, is at the end.

    Args:
        with_answer: whether to read an answer that has a column of its own.

    Raises:
        MalformedRow: it has none of the known shapes.
    """
    row = fields_of(row)
    if not _is_laid_out(row):
        row = with_messages(row)
    column = _chat_column(row)
    if column is None and _prompt_column(row) is None:
        lowered = _lowered(row)
        if _chat_column(lowered) is None and _prompt_column(lowered) is None:
            raise MalformedRow(
                f"no `instruction`, `messages` or `conversations` in it (it has: {names_of(row)}); "
                f"{hint_of_text(row) or hint_of(row)}"
            )
        row, column = lowered, _chat_column(lowered)
    if column is None:
        turns, used = _from_columns(row, with_answer)
    else:
        turns, used = _from_turns(row, column, with_answer)
    return whole(row, turns, used)


def whole(row: dict[str, Any], turns: Turns, used: set[str]) -> RowChat:
    """The chat of these turns with what stands beside it: system text, tools, variables."""
    named = () if _SYSTEMS.isdisjoint(row) else keys.SYSTEMS
    systems = {name: _system_text(row, name) for name in named if row.get(name) is not None}
    messages = with_system(turns.messages, systems)
    tools, tool_columns = _tools(row, turns)
    kwargs = _kwargs(row)
    used |= {*systems, *tool_columns, *keys.KWARGS, *place_images(row, messages)}
    drop_fillers(messages, tools)
    rest = {
        str(name): value
        for name, value in row.items()
        if value is not None and name not in keys.CHAT_KEYS and (name not in used or name in keys.KEPT)
    }
    final = final_answer(row, used)
    if final is not None:
        rest.setdefault("final_answer", final)
    unread = unread_fields(row, used, messages) | turns.unread
    if any(IMAGE_TAG in message["content"] and message["role"] == "user" for message in messages):
        # Its image was in a column that the file no longer has.
        unread.add(f"{IMAGE_TAG} in a text")
    return RowChat(messages, tools, kwargs, rest, frozenset(unread))


def _system_text(row: dict[str, Any], name: str) -> str:
    """A column's system text: a text, or, as in requests to a server, the parts of one or a message that holds it."""
    value = row[name]
    if isinstance(value, dict):
        value = next((value[key] for key in ("parts", "content", "text") if is_given(value.get(key))), value)
    if isinstance(value, list | tuple) and value:
        return content_of(value, f"`{name}`").of_text(f"`{name}`").text
    return value if isinstance(value, str) else text_field(row, name)


def drop_fillers(messages: list[Message], tools: tuple[Tool, ...]) -> None:
    """Drop the nulls that a conversion from a table has left in the arguments of calls."""
    if not any("tool_calls" in message for message in messages):
        return
    declared = parameters_of(tools)
    for message in messages:
        if "tool_calls" in message:
            calls: list[ToolCall] = [without_fillers(call, declared) for call in message["tool_calls"]]
            message["tool_calls"] = calls


def has_chat(row: dict[str, Any]) -> bool:
    """Whether a row has a column for a chat or a prompt."""
    return _chat_column(row) is not None or _prompt_column(row) is not None


def _lowered(row: dict[str, Any]) -> dict[str, Any]:
    return {name.lower() if isinstance(name, str) else name: value for name, value in row.items()}


def _is_laid_out(row: dict[str, Any]) -> bool:
    """Whether a row has columns for its prompt or its messages; a text beside them says the same once more."""
    if _prompt_column(row) is not None:
        return True
    row = _lowered(row)
    column = _chat_column(row)
    if column is None:
        return _prompt_column(row) is not None
    return not isinstance(row[column], str) or bool(as_turns(row[column]))


# --- chats ------------------------------------------------------------------------------------------------


def _chat_column(row: dict[str, Any]) -> str | None:
    """The column that holds the chat. Those of the two usual names are reported where they hold none."""
    for name in ("messages", "conversations"):
        # Where rows of two shapes share a file, Parquet may fill in an empty list.
        if row.get(name) is not None and (is_given(row[name]) or _prompt_column(row) is None):
            return name
    for name in keys.CHATS:
        if _is_chat(row.get(name)):
            return name
    return keys.TEXTS if _are_texts(row.get(keys.TEXTS)) else None


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(text, str) for text in value)


def _is_chat(value: Any) -> bool:
    if as_turns(value):
        return True
    items = as_list(value) if isinstance(value, list | tuple) else None
    return bool(items) and all(isinstance(item, dict) and {"input", "output"} <= item.keys() for item in items or ())


def _from_turns(row: dict[str, Any], column: str, with_answer: bool) -> tuple[Turns, set[str]]:
    used = {column}
    texts = row[column]
    if column == keys.TEXTS or (column == "conversations" and _are_texts(texts) and not as_turns(texts)):
        return Turns(alternating(texts, column)), used
    turns = turns_of(row[column], column)
    last = turns.messages[-1] if turns.messages else None
    if last is not None and last["role"] != "assistant":
        # When2Call and others put the answer beside a chat that ends with the user.
        beside = _answer_beside(row, with_answer)
        turns.messages += beside.messages
        used |= beside.used
    elif last is not None and "reasoning_content" not in last and "<think>" not in last["content"]:
        thoughts, name = _thoughts_beside(row)
        if name is not None:
            last["reasoning_content"] = thoughts
            used.add(name)
    return turns, used


def _answer_beside(row: dict[str, Any], with_answer: bool) -> Answered:
    if not with_answer:
        return _unanswered(row)
    for name in ("response", "completion", "output"):
        if isinstance(row.get(name), str) or as_turns(row.get(name)):
            return answer_of(row)
    return Answered([], set())


def _thoughts_beside(row: dict[str, Any]) -> tuple[str, str | None]:
    for name in keys.THOUGHTS if not _THOUGHTS.isdisjoint(row) else ():
        if is_thought(name, row.get(name)):
            return str(row[name]), name
    return "", None


# --- columns ----------------------------------------------------------------------------------------------


def _prompt_column(row: dict[str, Any]) -> str | None:
    first = next((name for name in keys.PROMPTS if row.get(name) is not None), None)
    if first is None and as_turns(row.get("context")):
        return "context"
    return first


def _from_columns(row: dict[str, Any], with_answer: bool) -> tuple[Turns, set[str]]:
    key = _prompt_column(row)
    assert key is not None, "the caller has looked"
    turns, used = prompt_of(row, key)
    answered = answer_of(row) if with_answer else _unanswered(row)
    turns.messages += answered.messages
    return turns, used | answered.used


def _unanswered(row: dict[str, Any]) -> Answered:
    """No answer; thoughts and answers beside the prompt are those of the answer that is left out."""
    _, thoughts = _thoughts_beside(row)
    return Answered([], {*keys.ANSWERS, *keys.CALLS, *((thoughts,) if thoughts else ())})


# --- beside the chat --------------------------------------------------------------------------------------


def _tools(row: dict[str, Any], turns: Turns) -> tuple[tuple[Tool, ...], set[str]]:
    for name in keys.TOOLS:
        if is_given(row.get(name)):
            return tools_of(row[name], name), {name}
    if turns.tools:
        return turns.tools, set()
    metadata = as_object(row.get("metadata"))
    if metadata is not None and is_given(metadata.get("tools")):
        return tools_of(metadata["tools"], "metadata.tools"), set()
    return (), set()


def _kwargs(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in keys.KWARGS:
        if is_given(row.get(name)):
            value = as_object(row[name])
            if value is None:
                raise MalformedRow(f"`{name}` is no object of template variables, nor the JSON text of one")
            found |= without_nulls(value)
    return found
