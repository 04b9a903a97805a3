"""What can be told of an answer while a model writes it: its thoughts and its text as far as they are certain.

Nothing is told that may turn out to be a mark of thoughts, the beginning of a call, or what the template writes around
an answer. So what is told is the beginning of what `AnswerReader.read` makes of the whole, with one exception: where a
model writes the end of thoughts that neither it nor the prompt has begun, they were told as text already, and all that
it wrote stays text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from easydistill.data.answers import THOUGHT_MARKS
from easydistill.teachers.parsing.form import Form

_BREAKS = "\r\n"


@dataclass(frozen=True)
class Marks:
    """What a model's answers are marked with."""

    own: tuple[str, str]
    """Of thoughts, in the template's own way; empty if it has none."""
    frame: tuple[str, str]
    """Around the text; empty if there is none."""
    form: Form | None
    """Of calls, if the answer may have some."""
    whole_only: bool
    """Whether nothing can be told before the end."""
    text_waits: bool
    """Whether text cannot be told from calls before the end."""

    @property
    def waits(self) -> bool:
        """Whether the text cannot be told before the end."""
        form = self.form
        return self.text_waits or (form is not None and bool(form.lead or any(self.frame)))


class AnswerStream:
    """An answer that is being written.

    Args:
        opened: the mark of thoughts with which the prompt ends.
    """

    def __init__(self, marks: Marks, opened: str) -> None:
        self._marks = marks
        self._text = opened
        self._thoughts, self._said = "", ""

    def add(self, piece: str) -> tuple[str, str]:
        """What is new and certain after a further piece of text: (thoughts, text)."""
        self._text += piece
        if self._marks.whole_only:
            return "", ""
        return self._told(*self._certain())

    def end(self, thoughts: str, said: str) -> tuple[str, str]:
        """The rest of the whole answer as it was read: (thoughts, text)."""
        if not said.startswith(self._said) and self._text.startswith(self._said):
            thoughts, said = self._thoughts, self._text
        return self._told(thoughts, said)

    def _told(self, thoughts: str, said: str) -> tuple[str, str]:
        new_thoughts, self._thoughts = _further(self._thoughts, thoughts)
        new_said, self._said = _further(self._said, said)
        return new_thoughts, new_said

    def _certain(self) -> tuple[str, str]:
        found: list[str] = []
        rest = self._text
        while True:
            begin = rest.lstrip()
            pair = next(((start, end) for start, end in THOUGHT_MARKS if begin.startswith(start)), None)
            if pair is None:
                break
            body, closed, behind = begin[len(pair[0]) :].partition(pair[1])
            if not closed:
                return _joined([*found, _before_mark(body.lstrip(_BREAKS), pair[1:]).rstrip()]), ""
            found.append(body.strip(_BREAKS))
            rest = behind.lstrip(_BREAKS)
        if _may_become(begin, (start for start, _ in THOUGHT_MARKS)):
            return _joined(found), ""
        own = self._own(begin) if not found else None
        thoughts, said = own if own is not None else (_joined(found), rest)
        return thoughts, "" if said is None or self._marks.waits else self._text_of(said)

    def _own(self, begin: str) -> tuple[str, str | None] | None:
        """(thoughts in the template's own marks, what is behind them, None if they are open); None without such."""
        start, end = self._marks.own
        if not start or not end:
            return None
        if begin.startswith(start):
            body, closed, behind = begin[len(start) :].partition(end)
            if closed:
                return body.strip(), behind.lstrip(_BREAKS)
            return _before_mark(body.lstrip(), (end,)).rstrip(), None
        return ("", None) if start.startswith(begin) else None

    def _text_of(self, said: str) -> str:
        start, end = self._marks.frame
        begin = said.lstrip()
        if start and begin.startswith(start):
            said = begin[len(start) :]
        elif start and start.startswith(begin):
            return ""
        if end:
            said = _before_mark(said.rstrip(), (end, end + "."))
        form = self._marks.form
        if form is None:
            return said
        if form.whole:
            return "" if _may_become(begin, form.marks) or begin.startswith(form.marks) else said
        at = form.find(said)
        return (said[:at] if at >= 0 else _before_mark(said, form.marks)).rstrip()


def _further(told: str, now: str) -> tuple[str, str]:
    """(what is new, all that was told)."""
    return (now[len(told) :], now) if now.startswith(told) else ("", told)


def _joined(thoughts: Iterable[str]) -> str:
    return "\n\n".join(part for part in thoughts if part.strip())


def _may_become(begin: str, marks: Iterable[str]) -> bool:
    """Whether a text may go on to begin with one of the marks."""
    return any(len(begin) < len(mark) and mark.startswith(begin) for mark in marks)


def _before_mark(text: str, marks: Iterable[str]) -> str:
    """The text without an end that may be the beginning of a mark."""
    most = max((length for mark in marks for length in range(1, len(mark)) if text.endswith(mark[:length])), default=0)
    return text[: len(text) - most]
