"""An answer as a model or a server gave it → the parts of a message: thoughts, text, calls.

A call that cannot be read is an error (`MalformedCall`): it is never taken for text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from easydistill.data.messages import ToolCall

THOUGHT_MARKS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel>thought", "<channel|>"),
)
"""What models write around their thoughts, in front of the answer."""


class MalformedCall(ValueError):
    """A call that is not a name with an object of arguments; the message says what it is instead."""


# --- thoughts ---------------------------------------------------------------------------------------------------


def split_thoughts(text: str) -> tuple[str | None, str]:
    """(the thoughts at the text's beginning, the rest); (None, the text itself) if it begins with no thoughts.

    Where the chat template opens the thoughts, the text has only their end, on a line's beginning or end. Thoughts
    without an end were cut off: the rest is empty. Line breaks next to the marks belong to the marks.
    """
    found: list[str] = []
    rest = text
    while (parts := _first_thoughts(rest, may_lack_start=not found)) is not None:
        thoughts, rest = parts
        found.append(thoughts)
    if not found:
        return None, text
    return "\n\n".join(part for part in found if part.strip()) or None, rest


def _first_thoughts(text: str, *, may_lack_start: bool) -> tuple[str, str] | None:
    begin = text.lstrip()
    for start, end in THOUGHT_MARKS:
        if begin.startswith(start):
            thoughts, _, rest = begin[len(start) :].partition(end)
            return thoughts.strip("\r\n"), rest.lstrip("\r\n")
    if not may_lack_start:
        return None
    for start, end in THOUGHT_MARKS:
        thoughts, found, rest = text.partition(end)
        if found and start not in thoughts and _stands_alone(thoughts, rest):
            return thoughts.strip("\r\n"), rest.lstrip("\r\n")
    return None


def _stands_alone(before: str, after: str) -> bool:
    """Whether a mark between two texts is next to a line break or an end of the text, not quoted inside a sentence."""
    return not before.rstrip(" ") or before.rstrip(" ").endswith("\n") or not after or after.lstrip(" ")[:1] in "\r\n"


def opened_thoughts(prompt: str) -> str:
    """The mark with which a prompt opens the answer's thoughts, with the white space behind it; empty if it opens
    none."""
    bare = prompt.rstrip()
    start = next((start for start, _ in THOUGHT_MARKS if bare.endswith(start)), None)
    return "" if start is None else prompt[len(bare) - len(start) :]


# --- calls ------------------------------------------------------------------------------------------------------


def read_calls(calls: Iterable[Any]) -> list[ToolCall]:
    """Calls as OpenAI's protocol spells them, arguments as JSON text or as an object.

    Raises:
        MalformedCall: one has no name, or its arguments are no object.
    """
    return [_read_call(call) for call in calls]


def _read_call(call: Any) -> ToolCall:
    if not isinstance(call, Mapping):
        raise MalformedCall(f"a call is not an object: {_shown(call)}")
    function = call.get("function")
    if not isinstance(function, Mapping):
        raise MalformedCall(f"a call of type {_shown(call.get('type'))} is not a function's")
    identity = call.get("id")
    return tool_call(function.get("name"), function.get("arguments"), identity if isinstance(identity, str) else None)


def tool_call(name: Any, arguments: Any, identity: str | None = None) -> ToolCall:
    """The call of a function.

    Args:
        arguments: an object, or JSON text of one; nothing, for a function without parameters, is an empty object.

    Raises:
        MalformedCall: there is no name, or the arguments are no object.
    """
    if not isinstance(name, str) or not name.strip():
        raise MalformedCall("a call names no function")
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        arguments = {}
    if isinstance(arguments, str):
        arguments = parse_json(arguments, f"the arguments of {name} are")
    if not isinstance(arguments, Mapping):
        raise MalformedCall(f"the arguments of {name} are not an object: {_shown(arguments)}")
    try:
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError):
        # NaN, or half of a surrogate pair: no file could hold the label.
        raise MalformedCall(f"the arguments of {name} cannot be written as JSON") from None
    call: ToolCall = {"name": name.strip(), "arguments": dict(arguments)}
    return {"id": identity, **call} if identity else call


def parse_json(text: str, what: str) -> Any:
    """JSON in a call; what JSON does not know (NaN) is refused, for no reader of the labels would take it.

    Raises:
        MalformedCall: `text` is no JSON.
    """
    try:
        return json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError):
        raise MalformedCall(f"{what} not JSON: {_shown(text)}") from None


def _refused(name: str) -> Any:
    raise ValueError(name)


def _shown(value: Any) -> str:
    """A value for a message, cut."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = re.sub(r"\s+", " ", text)
    return text if len(text) <= 120 else f"{text[:119]}…"
