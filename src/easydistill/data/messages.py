"""The messages of a chat."""

from __future__ import annotations

from typing import TypedDict


class Message(TypedDict, total=False):
    """One turn of a chat."""

    role: str
    content: str
    reasoning_content: str


def answer_message(text: str, reasoning: str | None = None) -> Message:
    """An assistant's message, with its reasoning beside the text if there is any."""
    answer: Message = {"role": "assistant", "content": text}
    if reasoning:
        answer["reasoning_content"] = reasoning
    return answer
