"""A turn's span, found by rendering another answer in its place: for chats in which sentinels change something."""

from __future__ import annotations

from easydistill.data.chat.cuts import Cuts, Render
from easydistill.data.chat.sentinels import PLACEHOLDERS, common_prefix, difference, placeholder, wrapped
from easydistill.data.chat.templates import Span
from easydistill.data.messages import Chat, Message
from easydistill.errors import DataError

_TELLING = 3
"""Characters beyond which a text is a message's own wherever it stands."""


def substituted(render: Render, cuts: Cuts, chat: Chat, text: str, index: int, done: int) -> Span | None:
    """The span of the turn in message `index` of a chat; None if it is not found, or not alone.

    Args:
        text: the chat's text.
        done: where the turns before it end.
    """
    return _OneTurn(render, cuts, chat, text, index).span(done)


class _OneTurn:
    def __init__(self, render: Render, cuts: Cuts, chat: Chat, text: str, index: int) -> None:
        self._render, self._cuts, self._chat, self._text, self._index = render, cuts, chat, text, index

    def span(self, done: int) -> Span | None:
        """The span."""
        which = 1 if PLACEHOLDERS[0][0] in self._text else 0
        changed = list(self._chat.messages)
        changed[self._index] = placeholder(changed[self._index], which)
        try:
            other = self._render(self._chat.with_messages(changed), False)
        except DataError:
            return None
        place = difference(self._text, other)
        if place is None or other.count(PLACEHOLDERS[which]) > _texts(changed[self._index]):
            # The turn is not shown, or shown again elsewhere, with other messages in between.
            return None
        stop = self._stop(place, changed)
        return None if stop is None else (self._start(place, done), stop)

    def _start(self, place: Span, done: int) -> int:
        earlier = self._chat.with_messages(self._chat.messages[: self._index])
        try:
            prompt, plain = self._render(earlier, True), self._render(earlier, False)
        except DataError:
            return place[0]
        if self._text.startswith(prompt):
            return len(prompt)
        opened = self._cuts.uncut(prompt, plain, common_prefix(prompt, plain))
        common = common_prefix(self._text[: place[0]], prompt)
        if common < place[0]:
            common = self._cuts.uncut(self._text, prompt, common)
        if common > opened:
            return common
        # Earlier turns are shown otherwise than as a prompt: look for the generation prompt itself.
        header = prompt[opened:]
        found = self._text.rfind(header, done, place[0]) if header else -1
        return found + len(header) if found >= 0 else place[0]

    def _stop(self, place: Span, changed: list[Message]) -> int | None:
        """The end of what the template writes after the turn, whatever follows; None if other messages follow there."""
        if self._index == len(changed) - 1:
            return self._last_stop(place[1])
        upto = self._index + 1
        try:
            through = self._render(self._chat.with_messages(self._chat.messages[:upto]), False)
            other = self._render(self._chat.with_messages(changed[:upto]), False)
        except DataError:
            return place[1]
        inside = difference(through, other)
        closing = "" if inside is None else through[inside[1] :]
        rest = self._text[place[1] :]
        common = self._cuts.uncut(rest, closing, common_prefix(rest, closing))
        return self._cuts.with_end(self._text, place[1], place[1] + common)

    def _last_stop(self, start: int) -> int | None:
        """The text's end, unless a template shows other messages behind the last one."""
        _, parts = wrapped(self._chat.messages[: self._index])
        found = self._cuts.end.search(self._text, start)
        closing = start if found is None else found.start()
        # A short text of a message may stand in any closing.
        if any(len(part.text) > _TELLING and part.text in self._text[start:closing] for part in parts):
            return None
        rest = self._text[closing if found is None else found.end() :]
        if not any(part.text in rest for part in parts):
            return len(self._text)
        return None if found is None else found.end()


def _texts(value: object) -> int:
    """How many placeholders a message, or a value in it, holds."""
    if isinstance(value, str):
        return sum(value.count(text) for text in PLACEHOLDERS)
    if isinstance(value, dict):
        return sum(map(_texts, value.values()))
    return sum(map(_texts, value)) if isinstance(value, list) else 0
