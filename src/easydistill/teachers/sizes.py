"""Estimates of a request's tokens, made before it is sent."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_PER_MESSAGE = 4
BYTES_A_TOKEN = 4
"""Of text, before anything is known of it."""
_FIRST_RATIO = 1 / BYTES_A_TOKEN
_FIRST_WORST_RATIO = 0.5
_MARGIN = 1.1
IMAGE_BYTES = 3000
"""Bytes of text that an image counts as: at so many bytes a token, what servers count for one of a megapixel, some 750
tokens."""


@dataclass(frozen=True)
class Size:
    """Estimated tokens of a request."""

    prompt: int
    completion: int
    """The mean of the answers so far."""
    worst_prompt: int
    worst_completion: int
    """The longest answer allowed."""
    prompt_bytes: int = 0
    messages: int = 0

    @property
    def expected(self) -> int:
        return self.prompt + self.completion

    @property
    def worst(self) -> int:
        return self.worst_prompt + self.worst_completion


class TokenEstimator:
    """Tokens from bytes of text: 4 bytes a token at first, then the ratio that the server's own counts show."""

    def __init__(self, max_new_tokens: int) -> None:
        self._longest = max_new_tokens
        self._worst_ratio: float | None = None
        self._bytes = self._prompt_tokens = self._completion_tokens = self._answers = 0

    def size(self, messages: Sequence[Any], tools: Sequence[Any] = ()) -> Size:
        """The estimate for a chat, with the tools that it is sent with."""
        length = chat_bytes(messages, tools)
        ratio = self._prompt_tokens / self._bytes if self._bytes else _FIRST_RATIO
        worst = _FIRST_WORST_RATIO if self._worst_ratio is None else self._worst_ratio * _MARGIN
        frame = _PER_MESSAGE * len(messages)
        completion = math.ceil(self._completion_tokens / self._answers) if self._answers else self._longest
        return Size(
            prompt=math.ceil(length * ratio) + frame,
            completion=min(completion, self._longest),
            worst_prompt=math.ceil(length * max(worst, ratio)) + frame,
            worst_completion=self._longest,
            prompt_bytes=length,
            messages=len(messages),
        )

    def learn(self, size: Size, prompt_tokens: int, completion_tokens: int) -> None:
        """Take the server's counts for a request estimated as `size`."""
        self._answers += 1
        self._completion_tokens += completion_tokens
        if size.prompt_bytes:
            # A template's own tokens are counted as if they were text.
            tokens = max(1, prompt_tokens - _PER_MESSAGE * size.messages)
            self._bytes += size.prompt_bytes
            self._prompt_tokens += tokens
            self._worst_ratio = max(self._worst_ratio or 0.0, tokens / size.prompt_bytes)


def text_tokens(text: str | None) -> int:
    """Estimated tokens of a text."""
    return math.ceil(text_bytes(text) * _FIRST_RATIO)


def chat_bytes(messages: Sequence[Any], tools: Sequence[Any] = ()) -> int:
    """Bytes of everything that messages and tools say."""
    said = sum(text_bytes(message.get("content")) for message in messages)
    for message in messages:
        said += text_bytes(message.get("reasoning_content"))
        if message.get("tool_calls"):
            said += _json_bytes(message["tool_calls"])
    return said + (_json_bytes(list(tools)) if tools else 0)


def _json_bytes(value: Any) -> int:
    return text_bytes(json.dumps(value, ensure_ascii=False))


def text_bytes(content: Any) -> int:
    """Bytes of a message's text in UTF-8; of a list of parts, those of the texts, and `IMAGE_BYTES` for an image."""
    if isinstance(content, str):
        return len(content) if content.isascii() else len(content.encode("utf-8", "surrogatepass"))
    if isinstance(content, list):
        return sum(_part_bytes(part) for part in content if isinstance(part, dict))
    return 0


def _part_bytes(part: dict[str, Any]) -> int:
    return IMAGE_BYTES if part.get("type") in ("image", "image_url") else text_bytes(part.get("text"))
