"""The parts of an answer beside its text, received whole or in pieces: thoughts under their many names, and calls.

Calls are kept as received; whether their arguments can be read is seen where the answer is used.
"""

from __future__ import annotations

from typing import Any

_REASONING = ("reasoning_content", "reasoning")
"""Names of a text with the thoughts: DeepSeek's, SGLang's and vLLM's; OpenRouter's and newer vLLM's."""
_DETAILS = "reasoning_details"
"""OpenRouter's list of the thoughts' parts."""
_PARTS = frozenset({"thinking", "reasoning", "reasoning.text", "reasoning.summary", "summary_text", "reasoning_text"})
"""Types of parts with thoughts, in a list of contents or of details."""
_TEXTS = ("thinking", "reasoning", "text", "summary", "content")
"""Where such a part has its text, or further parts."""
_ANSWER = frozenset({"content", "tool_calls", "function_call", "refusal", _DETAILS, *_REASONING})


def is_answer(message: dict[str, Any]) -> bool:
    """Whether a message has any part of an answer, be it empty."""
    return bool(message.keys() & _ANSWER)


class ThoughtParts:
    """The thoughts in a message, or in the deltas of one.

    Servers say the same thoughts under several names; the first name that says something counts, for each delta.
    """

    def __init__(self) -> None:
        self._found: list[str] = []

    def add(self, message: dict[str, Any]) -> None:
        """Take a message, or the delta of one."""
        texts = (message[name] for name in _REASONING if isinstance(message.get(name), str))
        said = next(filter(None, texts), "") or _text_of(message.get(_REASONING[1]))
        said = said or _text_of(message.get(_DETAILS)) or _text_of(message.get("content"))
        if said:
            self._found.append(said)

    def text(self) -> str:
        """All thoughts so far."""
        return "".join(self._found)


def _text_of(parts: Any) -> str:
    """The thoughts in a list of parts, or in a single one."""
    listed = parts if isinstance(parts, list) else [parts]
    return "".join(_part_text(part) for part in listed if isinstance(part, dict) and part.get("type") in _PARTS)


def _part_text(part: dict[str, Any]) -> str:
    """The text of a part: under the first name that has one, as text or as further parts."""
    for name in _TEXTS:
        value = part.get(name)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, list):
            inner = (item.get("text") if isinstance(item, dict) else item for item in value)
            if joined := "".join(text for text in inner if isinstance(text, str)):
                return joined
    return ""


class CallParts:
    """The calls in a message, or in the deltas of one, where their arguments come in fragments."""

    def __init__(self) -> None:
        self._calls: list[dict[str, Any]] = []
        self._at: dict[int, int] = {}
        """Index in the stream → place of the call that the fragments with it belong to."""

    def add_message(self, message: dict[str, Any]) -> None:
        """Take a whole message: each of its calls is one."""
        for call in self._pieces(message):
            self._calls.append({})
            self._take(len(self._calls) - 1, call)

    def add_delta(self, delta: dict[str, Any]) -> None:
        """Take the delta of a message."""
        for piece in self._pieces(delta):
            place = self._place(piece)
            if place == len(self._calls):
                self._calls.append({})
            if isinstance(index := piece.get("index"), int):
                self._at[index] = place
            self._take(place, piece)

    @staticmethod
    def _pieces(message: dict[str, Any]) -> list[dict[str, Any]]:
        calls, legacy = message.get("tool_calls"), message.get("function_call")
        found = [piece for piece in calls if isinstance(piece, dict)] if isinstance(calls, list) else []
        return [*found, {"index": -1, "function": legacy}] if isinstance(legacy, dict) and legacy else found

    def _place(self, piece: dict[str, Any]) -> int:
        """Which call a fragment belongs to.

        That with its index, unless it has another id: some servers give all calls the index 0. Without an index, the
        call with its id; a fragment with a new id, or a name, begins a new call, any other continues the last one.
        """
        identity, function, index = piece.get("id"), piece.get("function"), piece.get("index")
        new = len(self._calls)
        if isinstance(index, int):
            place = self._at.get(index, new)
            known = self._calls[place].get("id") if place < new else None
            return new if identity and known and identity != known else place
        if identity:
            return next((place for place, call in enumerate(self._calls) if call.get("id") == identity), new)
        named = isinstance(function, dict) and function.get("name")
        return new if named or not self._calls else new - 1

    def _take(self, place: int, piece: dict[str, Any]) -> None:
        call = self._calls[place]
        for name, value in piece.items():
            if name == "function" and isinstance(value, dict):
                _join(call.setdefault("function", {}), value)
            elif name != "index" and value is not None and not call.get(name):
                call[name] = value

    def calls(self) -> list[dict[str, Any]]:
        """The calls so far, each as OpenAI spells it."""
        return self._calls


def _join(function: dict[str, Any], piece: dict[str, Any]) -> None:
    """Add a piece of a call's function: fragments of arguments follow each other, a name comes once."""
    for name, value in piece.items():
        if name == "arguments" and isinstance(value, str) and isinstance(function.get(name), str):
            function[name] += value
        elif value is not None and (name == "arguments" or not function.get(name)):
            function[name] = value
