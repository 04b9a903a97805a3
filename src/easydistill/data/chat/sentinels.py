"""Where each part of a chat stands in the rendered text.

Every text of a chat (contents, thoughts, names of calls, texts among their arguments) is put between two sentinels,
spelled in noncharacters of Unicode that no real text holds, and the chat is rendered once more. If the sentinels taken
out again leave exactly the text that the chat has without them, they have changed nothing that the template decides,
and they tell where each part stands and which parts the template leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from easydistill.data.messages import Content, Message

CONTENT, THOUGHTS, CALLS = "content", "thoughts", "calls"

_DIGITS = "".join(map(chr, range(0xFDD0, 0xFDE0)))
_OPEN, _CLOSE = "\ufde0", "\ufde1"
_SENTINEL = re.compile("([\ufde0\ufde1])([\ufdd0-\ufddf]+)")
# Different in every character, so that one of them differs from whatever text it stands for, at both of its ends.
PLACEHOLDERS = ("\ufde2x\ufde3", "\ufde4y\ufde5")


@dataclass(frozen=True)
class Part:
    """A text of a chat: the message that it belongs to, and what it is there."""

    message: int
    kind: str
    text: str


@dataclass
class Located:
    """Where the parts of a chat stand in its text, in characters."""

    parts: list[Part]
    opened: dict[int, int] = field(default_factory=dict)
    """By part: where it begins. A template that cuts a text in pieces may lose one of its ends."""
    closed: dict[int, int] = field(default_factory=dict)
    """By part: where it ends. Of a part that is shown again (a call's name beside its result) the first time counts."""

    def positions(self) -> Iterator[tuple[int, int]]:
        """(position, message) of every end of a part, in no order."""
        for ends in (self.opened, self.closed):
            for part, position in ends.items():
                yield position, self.parts[part].message

    def is_shown(self, part: int) -> bool:
        """Whether the template shows a part, or a piece of it."""
        return part in self.opened or part in self.closed

    def is_whole(self, part: int) -> bool:
        """Whether both ends of a part are shown."""
        return part in self.opened and part in self.closed


def wrapped(messages: Sequence[Message]) -> tuple[list[Message], list[Part]]:
    """The messages with every text between two sentinels, and the parts."""
    parts: list[Part] = []

    def wrap(message: int, kind: str) -> Callable[[str], str]:
        def one(text: str) -> str:
            core = text.strip()
            if not core:
                return text
            number = "".join(_DIGITS[int(digit, 16)] for digit in f"{len(parts):x}")
            parts.append(Part(message, kind, core))
            # White space stays outside, so that it is trimmed as before.
            start = text.index(core)
            return f"{text[:start]}{_OPEN}{number}{core}{_CLOSE}{number}{text[start + len(core) :]}"

        return one

    changed = [
        replaced(message, wrap(at, CONTENT), wrap(at, THOUGHTS), wrap(at, CALLS)) for at, message in enumerate(messages)
    ]
    return changed, parts


def replaced(
    message: Message, content: Callable[[str], str], thoughts: Callable[[str], str], calls: Callable[[str], str]
) -> Message:
    """A message of the same shape with other texts."""
    # A copy with a changed key or two costs less than a new message.
    changed: Message = message.copy()
    changed["content"] = _content(message, content)
    if "reasoning_content" in message:
        changed["reasoning_content"] = thoughts(message["reasoning_content"])
    if message.get("tool_calls"):
        changed["tool_calls"] = [
            {**call, "name": calls(call["name"]), "arguments": _texts(call["arguments"], calls)}  # type: ignore[typeddict-item]
            for call in message["tool_calls"]
        ]
    return changed


def _content(message: Message, change: Callable[[str], str]) -> Content:
    """A content with other texts, its images as they are."""
    held = message["content"]
    if isinstance(held, str):
        return change(held)
    return [{**part, "text": change(part["text"])} if part["type"] == "text" else part for part in held]  # type: ignore[list-item]


def _texts(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with other texts, its keys as they are."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _texts(inner, change) for key, inner in value.items()}
    return [_texts(inner, change) for inner in value] if isinstance(value, list) else value


def located(text: str, marked: str, parts: list[Part]) -> Located | None:
    """Where the parts stand in `text`, given the rendering with sentinels; None if it shows another text."""
    found = Located(parts)
    pieces: list[str] = []
    at = kept = 0
    for match in _SENTINEL.finditer(marked):
        pieces.append(marked[at : match.start()])
        kept += match.start() - at
        at = match.end()
        number = int("".join(f"{_DIGITS.index(digit):x}" for digit in match[2]), 16)
        if number >= len(parts):
            return None
        (found.opened if match[1] == _OPEN else found.closed).setdefault(number, kept)
    pieces.append(marked[at:])
    return found if "".join(pieces) == text else None


def placeholder(message: Message, which: int) -> Message:
    """A message of the same shape in which every text is another; an empty message gets a content."""

    def other(text: str) -> str:
        return PLACEHOLDERS[which] if text else text

    bare = not message.get("reasoning_content") and not message.get("tool_calls")
    return replaced(message, (lambda _: PLACEHOLDERS[which]) if bare else other, other, other)


def difference(one: str, other: str) -> tuple[int, int] | None:
    """The span of `one` outside of which two texts are the same; None if they are equal."""
    if one == other:
        return None
    start = common_prefix(one, other)
    most = min(len(one), len(other)) - start
    end = common_prefix(one[::-1], other[::-1], most)
    return start, len(one) - end


def common_prefix(one: str, other: str, most: int | None = None) -> int:
    """The length of the longest common beginning, at most `most`."""
    limit = min(len(one), len(other)) if most is None else most
    if one[:limit] == other[:limit]:
        return limit
    low, high = 0, limit
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low
