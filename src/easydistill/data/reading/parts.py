"""The content of a message: a text, nothing, or a list of parts → text and images, and the calls, results and thoughts
in it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from easydistill.data.messages import Content as MessageContent
from easydistill.data.messages import Message, Part, ToolCall
from easydistill.data.reading.calls import calls_of
from easydistill.data.reading.media import is_media, media_part, of_mime, refused_place
from easydistill.data.reading.values import as_list, is_given, names_of
from easydistill.data.row_files import MalformedRow

_TEXT_TYPES = frozenset({"text", "input_text", "output_text", ""})
_THOUGHT_TYPES = ("thinking", "reasoning")
_GEMINI_CALLS, _GEMINI_RESULTS = ("functionCall", "function_call"), ("functionResponse", "function_response")
_GEMINI = (*_GEMINI_CALLS, *_GEMINI_RESULTS, "thought", "inlineData", "inline_data", "fileData", "file_data")
"""Keys of Gemini's parts, which have no type."""


@dataclass
class Content:
    """What a message's content holds."""

    text: str = ""
    thoughts: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)
    """Results of tools, which some formats put into the user's message."""
    given: bool = True
    """False if there is no content at all."""
    parts: list[Part] = field(default_factory=list)
    """Texts and images in order, if there are images. What the row holds of an image stands in place of its digest."""

    @property
    def said(self) -> MessageContent:
        """The content of the message that this is."""
        return self.parts or self.text

    def of_text(self, where: str) -> Content:
        """This content, where only text may stand.

        Raises:
            MalformedRow: it holds an image.
        """
        if self.parts:
            raise refused_place(where)
        return self


def content_of(value: Any, where: str) -> Content:
    """The content of a message.

    Args:
        where: what it is the content of, for messages: "the content of the user message".

    Raises:
        MalformedRow: it is neither text nor parts of text and images.
    """
    if value is None:
        return Content(given=False)
    if isinstance(value, str):
        return Content(value)
    parts = [value] if isinstance(value, dict) else as_list(value)
    if parts is None:
        raise MalformedRow(f"{where} is not text")
    content = Content()
    found: list[Part] = []
    for part in parts:
        image = media_part(part, where) if is_media(part) else None
        text = _text_of(part, content, where) if image is None else ""
        if image is not None:
            found.append(image)
        elif found and found[-1]["type"] == "text":
            # Chat templates that take parts write them without anything in between.
            found[-1]["text"] += text
        elif text:
            found.append({"type": "text", "text": text})
    content.text = "".join(part["text"] for part in found if part["type"] == "text")
    content.given = bool(parts)
    if any(part["type"] == "image" for part in found):
        content.parts = found
    return content


def _text_of(part: Any, content: Content, where: str) -> str:
    """The text of a part; what else a part holds is added to `content`."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise MalformedRow(f"{where} is not text")
    kind = str(part.get("type") or "")
    if not kind and any(name in part for name in _GEMINI):
        return _gemini(part, content, where)
    if kind in _TEXT_TYPES:
        return _own_text(part, ("text", "content"), where)
    _add(part, kind, content, where)
    return ""


def _add(part: dict[str, Any], kind: str, content: Content, where: str) -> None:
    """Add the call, the result or the thoughts of a part to `content`."""
    if kind in ("tool_use", "tool_call"):
        content.calls += calls_of(part.get("tool_call") or part)
    elif kind == "tool_result":
        content.results.append(_result(part))
    elif kind in _THOUGHT_TYPES:
        content.thoughts += _own_text(part, (*_THOUGHT_TYPES, "text"), where)
    else:
        raise MalformedRow(f"{where} holds a part of type {kind!r}, which is not text")


def _gemini(part: dict[str, Any], content: Content, where: str) -> str:
    """The text of a part as Gemini has them: `{"functionCall": {"name", "args"}}`, or a text that is a thought."""
    if call := _first(part, _GEMINI_CALLS):
        content.calls += calls_of(call)
        return ""
    if isinstance(result := _first(part, _GEMINI_RESULTS), dict):
        message: Message = {"role": "tool", "content": result_text(result.get("response"))}
        if isinstance(result.get("name"), str) and result["name"]:
            message["name"] = result["name"]
        content.results.append(message)
        return ""
    if file := _first(part, ("fileData", "file_data")):
        raise of_mime(file, where)
    text = _own_text(part, ("text",), where)
    if part.get("thought"):
        content.thoughts += text
        return ""
    return text


def _first(part: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((part[name] for name in names if is_given(part.get(name))), None)


def thought_in(part: Any) -> str:
    """The thoughts in a part; "" if it has none that can be read, such as encrypted ones."""
    names = ("text", *_THOUGHT_TYPES) if isinstance(part, dict) else ()
    return next((part[name] for name in names if isinstance(part.get(name), str)), "")


def _own_text(part: dict[str, Any], names: tuple[str, ...], where: str) -> str:
    found = next((part[name] for name in names if part.get(name) is not None), None)
    if not isinstance(found, str):
        raise MalformedRow(f"{where} holds a part that is not text (it has: {names_of(part)}): write it as text")
    return found


def _result(part: dict[str, Any]) -> Message:
    message: Message = {"role": "tool", "content": result_text(part.get("content"))}
    identity = part.get("tool_use_id") or part.get("tool_call_id")
    if isinstance(identity, str) and identity:
        message["tool_call_id"] = identity
    return message


def result_text(value: Any) -> str:
    """The result of a tool as text: JSON where it is an object or a number, as servers send it."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    parts = as_list(value)
    if parts and all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in parts):
        where = "the content of the tool message"
        return content_of(parts, where).of_text(where).text
    try:
        return json.dumps(value if parts is None else parts, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        raise MalformedRow("the content of the tool message is not text") from None
