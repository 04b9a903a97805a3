"""Where a text may be cut: never inside of a token, and a turn's end behind its end token."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from easydistill.data.messages import Chat

_TAG = re.compile(r"<[^<>\s]*>|\[[^\[\]\s]*\]")
_WINDOW = 64

Render = Callable[[Chat, bool], str]
"""(chat, add_generation_prompt) → text."""


class Cuts:
    """The places at which the texts of one model may be cut.

    Args:
        ends: the texts of all tokens that end a turn.
        tokens: texts that the tokenizer never splits, such as `<think>`.
    """

    def __init__(self, ends: Iterable[str], tokens: Iterable[str]) -> None:
        self.end = _any_of(ends)
        self._token = _any_of(tokens)

    def uncut(self, one: str, other: str, at: int) -> int:
        """`at`, or where a token or tag begins that it would cut in one of two texts that are the same up to there."""
        # A text that ends there is not cut.
        texts = [text for text in (one, other) if len(text) > at]
        low = max(0, at - _WINDOW)
        for pattern in (self._token, _TAG):
            for text in texts:
                for match in pattern.finditer(text, low, at + _WINDOW):
                    if match.start() < at < match.end():
                        at = match.start()
                        break
        return at

    def with_end(self, text: str, start: int, stop: int) -> int:
        """`stop`, or behind the end token that follows there (GLM's, which opens the next turn), if none was before."""
        if self.end.search(text, start, stop):
            return stop
        found = self.end.match(text, stop)
        return stop if found is None else found.end()


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted({text for text in texts if text}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
