"""What a form of writing calls is, and what forms share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from easydistill.data.answers import MalformedCall
from easydistill.data.messages import Tool, ToolCall

PROBE = "look_up"
"""The function of the call with which a template is asked for its form."""
Region = tuple[list[ToolCall], int]
"""Calls, and the position behind them."""
ReadRegion = Callable[[str, int, Sequence[Tool]], Region]
"""Reads the calls of a text from a position on: at least one, or as many as stand in one pair of marks. The tools tell
the types of values that are written without quotes. Raises `MalformedCall`."""


@dataclass(frozen=True)
class Form:
    """A form of writing calls."""

    name: str
    marks: tuple[str, ...]
    """With one of them calls begin."""
    read: ReadRegion
    """Reads one region of calls; the position is that of its mark."""
    whole: bool = False
    """Whether calls are the whole text: it has them only if it begins with a mark."""
    lead: str = ""
    """What the template itself writes before the calls, with the probe's function in it (see `forms.py`)."""
    tail: str = ""
    """What the template itself writes behind the calls."""
    text_behind: bool = False
    """Whether the template writes a message's text behind its calls."""

    def find(self, text: str) -> int:
        """Where calls begin in a text; −1 if it has none."""
        if self.whole:
            begin = len(text) - len(text.lstrip())
            return begin if text.startswith(self.marks, begin) else -1
        return min((at for mark in self.marks if (at := text.find(mark)) >= 0), default=-1)

    def parse(self, text: str, tools: Sequence[Tool] = (), *, strict: bool = True) -> tuple[str, list[ToolCall]]:
        """(the text beside the calls, the calls).

        Args:
            strict: refuse text behind the calls, if the template has no place for it.

        Raises:
            MalformedCall: calls begin in the text, but they cannot be read.
        """
        at = begin = self.find(text)
        if begin < 0:
            return text, []
        calls: list[ToolCall] = []
        while text.startswith(self.marks, at):
            found, at = self.read(text, at, tools)
            calls += found
            at = skip_space(text, at)
        behind = text[at:].strip().removeprefix(self.tail).strip() if self.tail else text[at:].strip()
        if strict and behind and not self.text_behind:
            raise MalformedCall(f"there is text behind the calls: {behind[:80]!r}")
        if not calls:
            raise MalformedCall("the list of calls is empty")
        before = self._said(text[:begin].rstrip(), calls[0]["name"])
        return "\n".join(part for part in (before, behind if self.text_behind else "") if part), calls

    def _said(self, before: str, name: str) -> str:
        """The text before the calls, without what the template writes there by itself."""
        lead = self.lead.replace(PROBE, name)
        return before.removesuffix(lead).rstrip() if lead else before


def skip_space(text: str, at: int) -> int:
    """The position of the next character that is no white space."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def expect(text: str, at: int, what: str) -> int:
    """The position behind `what`, which must stand here.

    Raises:
        MalformedCall: it does not.
    """
    if not text.startswith(what, at):
        raise MalformedCall(f"{what!r} is missing before {text[at : at + 60]!r}")
    return at + len(what)


def until(text: str, at: int, end: str) -> tuple[str, int]:
    """(the text up to `end`, the position behind it).

    Raises:
        MalformedCall: there is no end.
    """
    stop = text.find(end, at)
    if stop < 0:
        raise MalformedCall(f"{end!r} is missing behind {text[at : at + 60]!r}")
    return text[at:stop], stop + len(end)


def _refuse(name: str) -> Any:
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def read_json(text: str, at: int) -> tuple[Any, int]:
    """(the JSON value that begins here, the position behind it).

    Raises:
        MalformedCall: none does.
    """
    at = skip_space(text, at)
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        raise MalformedCall(f"this is not JSON: {text[at : at + 80]!r}") from None


def typed(value: str, parameter: str, function: str, tools: Sequence[Tool]) -> Any:
    """A value that was written without quotes, by the type that the function's schema gives its parameter: text as it
    is, anything else as JSON if it is JSON."""
    types = _types(parameter, function, tools)
    if types == {"string"}:
        return value
    if (not types or types & {"boolean", "null"}) and value.strip() in _PYTHON:
        return _PYTHON[value.strip()]
    try:
        return _DECODER.decode(value.strip())
    except (ValueError, RecursionError):
        return value


_PYTHON = {"True": True, "False": False, "None": None}
"""Values that templates write as Python does."""


def _types(parameter: str, function: str, tools: Sequence[Tool]) -> set[str]:
    """The types that a parameter may have, as far as its schema says so plainly."""
    for tool in tools:
        described = tool.get("function", tool)
        if isinstance(described, dict) and described.get("name") == function:
            schema: Any = described.get("parameters") or {}
            schema = schema.get("properties", {}) if isinstance(schema, dict) else {}
            schema = schema.get(parameter, {}) if isinstance(schema, dict) else {}
            kinds = schema.get("type") if isinstance(schema, dict) else None
            return set(kinds) if isinstance(kinds, list) else {kinds} if isinstance(kinds, str) else set()
    return set()
