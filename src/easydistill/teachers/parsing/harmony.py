"""Harmony, the form of gpt-oss: messages to channels, of which analysis holds thoughts and final the answer."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from easydistill.data.answers import MalformedCall, tool_call
from easydistill.data.messages import ToolCall

CHANNEL, MESSAGE = "<|channel|>", "<|message|>"
_HEAD = re.compile(r"(?:<\|start\|>)?(?:assistant)?(?P<head>[^<]*(?:<\|(?:channel|constrain)\|>[^<]*)*)<\|message\|>")
_END = re.compile(r"<\|(?:end|call|return|start)\|>")
_TO = re.compile(r"\bto=([\w.:-]+)")
_NAMED = re.compile(r"<\|channel\|>\s*(\w+)")
_THOUGHTS, _FUNCTIONS = "analysis", "functions."


@dataclass
class Harmony:
    """The messages of an answer, by what they are."""

    thoughts: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)


def is_harmony(template: str) -> bool:
    """Whether a chat template writes harmony."""
    return CHANNEL in template and MESSAGE in template


def read_harmony(text: str) -> Harmony | None:
    """The messages in what a model wrote after `<|start|>assistant`; None if it is not harmony.

    Raises:
        MalformedCall: a call's arguments are no object, or a call is to something that is no function.
    """
    if MESSAGE not in text:
        return None
    found = Harmony()
    at = 0
    while (head := _HEAD.match(text, at)) is not None:
        stop = _END.search(text, head.end())
        body = text[head.end() : stop.start() if stop else len(text)]
        _add(found, head["head"], body)
        if stop is None:
            return found
        at = stop.start() if stop[0] == "<|start|>" else stop.end()
    return found if not text[at:].strip() else None


def _add(found: Harmony, head: str, body: str) -> None:
    to, channel = _TO.search(head), _NAMED.search(head)
    if to is not None:
        if not to[1].startswith(_FUNCTIONS):
            raise MalformedCall(f"a call is to {to[1]!r}, which is no function of the row's")
        found.calls.append(tool_call(to[1].removeprefix(_FUNCTIONS), body))
    elif channel is not None and channel[1] == _THOUGHTS:
        found.thoughts.append(body)
    else:
        found.texts.append(body)
