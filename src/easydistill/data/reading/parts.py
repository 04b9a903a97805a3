"""The content of a message: a text, nothing, or a list of parts → text, and the calls, results and thoughts in it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from easydistill.data.messages import Message, ToolCall
from easydistill.data.reading.calls import calls_of
from easydistill.data.reading.values import as_list, is_given, names_of
from easydistill.data.row_files import MalformedRow

IMAGE_HINT = "images, sound and video cannot be read yet: remove the row, or describe in words what it shows"
_TEXT_TYPES = frozenset({"text", "input_text", "output_text", ""})
_MEDIA = ("image", "image_url", "video", "video_url", "audio", "audio_url", "input_image", "input_audio", "file")
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


def content_of(value: Any, where: str) -> Content:
    """The content of a message.

    Args:
        where: what it is the content of, for messages: "the content of the user message".

    Raises:
        MalformedRow: it is neither text nor parts of text, or it holds an image.
    """
    if value is None:
        return Content(given=False)
    if isinstance(value, str):
        return Content(value)
    parts = [value] if isinstance(value, dict) else as_list(value)
    if parts is None:
        raise MalformedRow(f"{where} is not text")
    content = Content()
    texts: list[str] = []
    for part in parts:
        texts.append(_text_of(part, content, where))
    # Chat templates that take parts write them without anything in between.
    content.text = "".join(texts)
    content.given = bool(parts)
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
    if kind in _MEDIA or any(is_given(part.get(name)) for name in _MEDIA):
        raise MalformedRow(f"{where} holds a part of type {kind or 'image'!r}; {IMAGE_HINT}")
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
    if _first(part, ("inlineData", "inline_data", "fileData", "file_data")):
        raise MalformedRow(f"{where} holds a file; {IMAGE_HINT}")
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
        return content_of(parts, "the content of the tool message").text
    try:
        return json.dumps(value if parts is None else parts, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        raise MalformedRow("the content of the tool message is not text") from None
