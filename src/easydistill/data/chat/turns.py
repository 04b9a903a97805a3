"""The spans of a rendered chat that the assistant writes.

A turn begins where generation would: right after the generation prompt, as far as the text has it. What the model must
write first (the end of a thought, the name of a channel) is so part of the turn. It ends with the first end token after
its last part, or, where the template writes none, where the template's own closing of a turn ends.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from easydistill.data.chat.cuts import Cuts, Render
from easydistill.data.chat.sentinels import Located, common_prefix, located, wrapped
from easydistill.data.chat.substitution import substituted
from easydistill.data.chat.templates import Span
from easydistill.data.messages import Chat, Message, text_of
from easydistill.errors import DataError


@dataclass(frozen=True)
class Turns:
    """What was found in a text."""

    learned: dict[int, list[Span]]
    """The spans of every turn, by message; a turn that cannot be located has none."""
    located: Located | None
    """Where all parts of the chat stand, if the template treats a marked chat as it treats the chat itself."""


class Frames:
    """What a template writes around turns, learned from the chats rendered so far.

    It saves two renderings a turn. What was learned is only used where the text at hand shows it again.
    """

    def __init__(self) -> None:
        self.before: dict[Hashable, str] = {}
        """From a part's end through the generation prompt, less white space at the start, which may be the part's."""
        self.after: dict[Hashable, str] = {}
        """From a turn's last part to its end, the same."""

    @staticmethod
    def match(known: str | None, text: str, start: int, before: int) -> int | None:
        """Where a frame ends that stands in `text` from `start`, white space aside; None if it does not."""
        if not known:
            return None
        # Rows whose contents end with white space are rare.
        at = start
        while not text.startswith(known, at):
            if at >= len(text) or not text[at].isspace():
                return None
            at += 1
        end = at + len(known)
        return end if end <= before else None


class TurnFinder:
    """Finds the turns in the texts of one template.

    Args:
        render: renders a chat.
        ends: the texts of all tokens that end a turn.
        tokens: texts that the tokenizer never splits, such as `<think>`.
    """

    def __init__(self, render: Render, ends: Iterable[str], tokens: Iterable[str]) -> None:
        self._render = render
        self._cuts = Cuts(ends, tokens)
        self._frames = Frames()

    def find(self, chat: Chat, text: str, wanted: Sequence[int], marks: Sequence[Span] = ()) -> Turns:
        """The turns of a chat in its text.

        Args:
            wanted: the messages whose turns are looked for.
            marks: the spans that the template itself marks as the assistant's, if it does.
        """
        one = _OneChat(self._render, self._frames, chat, text, self._cuts)
        if not marks:
            return Turns({index: [span] for index, span in one.spans(wanted).items()}, one.located)
        every = [index for index, message in enumerate(chat.messages) if message["role"] == "assistant"]
        if len(marks) == len(every):
            own = {index: [mark] for index, mark in zip(every, marks, strict=True)}
        else:
            own = _shared_out(marks, one.spans(every))
        return Turns({index: own[index] for index in wanted if index in own}, one.located)


def _shared_out(marks: Sequence[Span], turns: Mapping[int, Span]) -> dict[int, list[Span]]:
    """Marks by the turn in which they end: a mark may begin before what the assistant has to write."""
    found: dict[int, list[Span]] = {}
    for mark in marks:
        nearest = [index for index, turn in turns.items() if mark[0] < turn[1] and turn[0] < mark[1]]
        if nearest:
            found.setdefault(nearest[-1], []).append(mark)
    return found


@dataclass(frozen=True)
class _Place:
    """A turn's parts in the text, and the nearest parts of other messages."""

    start: int
    end: int
    before: int
    """Where the last part before it ends; 0 if there is none."""
    message_before: int
    """The message of that part; −1 if there is none."""
    after: int
    """Where the next part begins; the text's end if there is none."""
    message_after: int


class _OneChat:
    """The search in one text."""

    def __init__(self, render: Render, frames: Frames, chat: Chat, text: str, cuts: Cuts) -> None:
        self._render, self._frames, self._cuts = render, frames, cuts
        self._chat, self._text = chat, text
        self._key = (bool(chat.tools), repr(chat.template_kwargs) if chat.template_kwargs else "")
        self.located = self._locate()
        # Position and message of every part's ends, in the order of the text.
        self._ends = sorted(self.located.positions()) if self.located else []

    def _locate(self) -> Located | None:
        changed, parts = wrapped(self._chat.messages)
        try:
            marked = self._render(self._chat.with_messages(changed), False)
        except DataError:
            return None
        return located(self._text, marked, parts)

    def spans(self, wanted: Sequence[int]) -> dict[int, Span]:
        """The spans of turns, by message."""
        found: dict[int, Span] = {}
        done = 0
        for index in wanted:
            span = self._span(index, done)
            if span is not None and done <= span[0] < span[1]:
                found[index] = span
                done = span[1]
        return found

    def _span(self, index: int, done: int) -> Span | None:
        """The span of the turn in message `index`; None if it is not found. Earlier turns end at `done`."""
        place = self._place(index)
        if place is None:
            return substituted(self._render, self._cuts, self._chat, self._text, index, done)
        start = self._start(index, place)
        return (start, self._stop(index, place))

    # --- by sentinels -----------------------------------------------------------------------------------

    def _place(self, index: int) -> _Place | None:
        own = [position for position, message in self._ends if message == index]
        if not own:
            return None
        start, end = own[0], own[-1]
        before, message_before = 0, -1
        after, message_after = len(self._text), len(self._chat.messages)
        for position, message in self._ends:
            if message == index:
                continue
            # A system's text may stand anywhere but inside of a turn.
            moved = self._chat.messages[message]["role"] in ("system", "developer")
            if position <= start and (message < index or moved):
                before, message_before = position, message
            elif position >= end and (message > index or moved):
                after, message_after = min((after, message_after), (position, message))
            else:
                return None
        return _Place(start, end, before, message_before, after, message_after)

    def _start(self, index: int, place: _Place) -> int:
        # Messages without a part between the two belong to what is learned about the template.
        between = self._chat.messages[max(place.message_before, 0) : index]
        key = (self._key, place.message_before < 0, tuple(_shape(message) for message in between))
        known = self._frames.before.get(key)
        end = self._frames.match(known, self._text, place.before, len(self._text))
        if end is not None:
            return end
        prompt = self._tail(index, True)
        if prompt is None:
            return place.start
        self._frames.before[key] = prompt.lstrip()
        return self._after_prompt(index, place, prompt)

    def _after_prompt(self, index: int, place: _Place, prompt: str) -> int:
        """The end of what the text and the generation prompt have in common after the part before."""
        if self._text.startswith(prompt, place.before):
            return place.before + len(prompt)
        between = self._text[place.before : place.start]
        common = min(common_prefix(between, prompt), len(between))
        if common == len(between):
            return place.start
        common = self._cuts.uncut(between, prompt, common)
        # Only what is past the point where the generation prompt begins is the assistant's.
        plain = self._tail(index, False)
        opened = 0 if plain is None else self._cuts.uncut(prompt, plain, common_prefix(prompt, plain))
        return place.before + common if common >= opened and plain is not None else place.start

    def _tail(self, upto: int, prompt: bool) -> str | None:
        """What the template writes after the last part of the first `upto` messages."""
        changed, parts = wrapped(self._chat.messages[:upto])
        try:
            marked = self._render(self._chat.with_messages(changed), prompt)
        except DataError:
            return None
        whole = located(_plain(marked), marked, parts)
        assert whole is not None
        return _plain(marked)[max((position for position, _ in whole.positions()), default=0) :]

    def _stop(self, index: int, place: _Place) -> int:
        messages = self._chat.messages
        if index == len(messages) - 1 and place.after == len(self._text):
            return len(self._text)
        key = (self._key, _shape(messages[index]))
        known = self._frames.after.get(key)
        end = self._frames.match(known, self._text, place.end, place.after)
        if end is not None:
            return self._cuts.with_end(self._text, place.end, end)
        closing = self._tail(index + 1, False) or ""
        if self._text.startswith(closing, place.end):
            self._frames.after[key] = closing.lstrip()
            return self._cuts.with_end(self._text, place.end, place.end + len(closing))
        rest = self._text[place.end : place.after]
        found = self._cuts.end.search(rest) if index + 1 in (place.message_after, len(messages)) else None
        if found is not None:
            return place.end + found.end()
        return self._cuts.with_end(
            self._text, place.end, place.end + self._cuts.uncut(rest, closing, common_prefix(rest, closing))
        )


def _plain(marked: str) -> str:
    return re.sub("[\ufde0\ufde1][\ufdd0-\ufddf]+", "", marked)


def _shape(message: Message) -> Hashable:
    """What a template may decide by: the role, and which parts a message has."""
    return (
        message["role"],
        bool(text_of(message).strip()),
        bool(message.get("reasoning_content")),
        bool(message.get("tool_calls")),
        None if isinstance(message["content"], str) else tuple(part["type"] for part in message["content"]),
    )
