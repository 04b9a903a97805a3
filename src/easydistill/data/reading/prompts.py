"""The prompt of a row with columns: what stands before the answer, with the texts beside it."""

from __future__ import annotations

import re
from typing import Any

from easydistill.data.messages import Message
from easydistill.data.reading import keys
from easydistill.data.reading.turns import Turns, turns_of
from easydistill.data.reading.values import as_list, as_turns, not_text, text_field
from easydistill.data.row_files import MalformedRow

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def prompt_of(row: dict[str, Any], key: str) -> tuple[Turns, set[str]]:
    """The chat up to the prompt, and the columns that it was read from.

    Args:
        key: the column of the prompt.
    """
    history = _history(row)
    used = {key, "history"} if history else {key}
    # The paper's format holds plain text, whatever it looks like.
    literal = key == "instruction" and isinstance(row[key], str)
    if not literal and as_turns(row[key]):
        turns = turns_of(row[key], key)
        turns.messages = [*history, *turns.messages]
        return turns, used
    if not isinstance(row[key], str):
        raise MalformedRow(not_text(key, row[key], "prompt"))
    spoken = None if literal else dialogue(row[key])
    if spoken is not None:
        return Turns([*history, *spoken]), used
    before, texts, columns = _beside(row, key)
    text = "\n\n".join([row[key], *filter(str.strip, texts)])
    return Turns([*before, *history, {"role": "user", "content": text}]), used | columns


def _beside(row: dict[str, Any], key: str) -> tuple[list[Message], list[str], set[str]]:
    """What stands in other columns than the prompt's: messages, texts, and the names of these columns."""
    messages: list[Message] = []
    texts: list[str] = []
    columns = [name for name in keys.BESIDE if name != key and row.get(name) is not None]
    for name in columns:
        if name == "context" and as_turns(row[name]):
            messages = turns_of(row[name], name).messages
        else:
            texts.append(_text_beside(row, name))
    return messages, texts, set(columns)


def _text_beside(row: dict[str, Any], name: str) -> str:
    texts = as_list(row[name]) if name == "context" and not isinstance(row[name], str | dict) else None
    if texts is not None and all(isinstance(text, str) for text in texts):
        return "\n\n".join(texts)
    return text_field(row, name)


def _history(row: dict[str, Any]) -> list[Message]:
    history = row.get("history")
    if history is None or (isinstance(history, list | tuple) and not history) or history == "":
        return []
    if as_turns(history):
        return turns_of(history, "history").messages
    messages: list[Message] = []
    for turn in history if isinstance(history, list | tuple) else [None]:
        if not (isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(part, str) for part in turn)):
            raise MalformedRow("`history` must be pairs of texts, or messages")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return messages


def dialogue(text: str) -> list[Message] | None:
    """The messages of a text in which speakers take turns (`\\n\\nHuman: …\\n\\nAssistant: …`, as in HH-RLHF); None if
    it is no such text. An assistant's turn at the end that says nothing is where an answer would follow."""
    if not text.startswith("\n\nHuman:") or "\n\nAssistant:" not in text:
        return None
    pieces = _SPEAKER.split(text)
    messages: list[Message] = [
        {"role": "user" if speaker == "Human" else "assistant", "content": said.strip()}
        for speaker, said in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    if messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages.pop()
    return messages
