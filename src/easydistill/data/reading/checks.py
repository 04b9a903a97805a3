"""What a row must have, and must not have, to be read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from easydistill.data.messages import Message, is_learned, says_something, text_of
from easydistill.data.reading import keys
from easydistill.data.row_files import MalformedRow, has_lone_surrogates

PAIR_HINT = (
    "it holds answers of which one is better: read the file as pairs (jobs dpo and reward_model), or name the one to "
    'learn: dataset.columns: {"answer": …}'
)
MAPPING_HINT = 'if a column holds it under another name, say so: dataset.columns: {"prompt": …, "answer": …}'


def vote_of(row: dict[str, Any], name: str) -> bool | None:
    """What a label says of a row's answer: good, bad, or, if it is the label of something else, nothing."""
    value = row[name]
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    # Numbers name classes of all sorts, except in rows that hold nothing but an answer and what it is worth.
    return bool(value) if value in (0, 1) and {"prompt", "completion", name, "id"} >= row.keys() else None


def refuse_bad(row: dict[str, Any]) -> None:
    """Refuse a row to imitate whose answer is marked as a bad one."""
    for name in keys.LABELS:
        if row.get(name) is not None and vote_of(row, name) is False:
            raise MalformedRow(
                f"`{name}` is false: its answer is a bad one, not one to imitate; read the file as pairs (jobs dpo and "
                "reward_model), where a good and a bad answer to one prompt make a pair, or remove such rows"
            )


def refuse_lone_surrogates(messages: list[Message], beside: Sequence[Any] = ()) -> None:
    """Refuse what cannot be written again: half of a surrogate pair, or a call or tool that JSON does not hold.

    Args:
        beside: tools and template variables.
    """
    texts = [value for message in messages for value in message.values() if isinstance(value, str)]
    texts += [text_of(message) for message in messages if not isinstance(message["content"], str)]
    values = [*(message["tool_calls"] for message in messages if "tool_calls" in message), *filter(None, beside)]
    if values:
        try:
            texts.append(json.dumps(values, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise MalformedRow(f"its tool calls, tools or template variables are not JSON: {error}") from None
    if any(map(has_lone_surrogates, texts)):
        raise MalformedRow("its text contains half of a surrogate pair")


def hint_of(row: dict[str, Any]) -> str:
    """What to do with a row that has no prompt, or no answer."""
    return PAIR_HINT if any(row.get(name) is not None for name in keys.PAIRED) else MAPPING_HINT


def check_chat(messages: list[Message], row: dict[str, Any], *, labelled: bool) -> None:
    """Refuse a chat without a prompt, and without an answer to learn where one is needed.

    Args:
        row: the row that holds the chat.
    """
    users = [message for message in messages if message["role"] == "user"]
    if not users:
        raise MalformedRow("there is no user message")
    if not says_something(users[-1]):
        raise MalformedRow("the instruction is empty")
    if not labelled:
        return
    if messages[-1]["role"] != "assistant":
        raise MalformedRow(f"there is no answer to train on; {hint_of(row)}")
    if not says_something(messages[-1]):
        raise MalformedRow("the answer is empty: there is neither text nor a tool call")
    if not any(map(is_learned, messages)):
        raise MalformedRow(
            "no answer of it is learned: each is marked with weight 0 (or loss, train: false); mark one with 1, or "
            "remove the row"
        )
