"""Messages in the form that one template reads.

Templates differ in the name of the thoughts, in whether a call's arguments are an object or JSON text, and in what the
content of a message is that only calls tools: empty, None or absent. The form is found by rendering a call once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from easydistill.data.chat.templates import Template
from easydistill.data.messages import Message, template_message
from easydistill.errors import DataError

_ABSENT = "absent"
_NAME, _KEY, _VALUE = "count_legs", "animal", "spider"
_CALL = {"id": "call00001", "name": _NAME, "arguments": {_KEY: _VALUE, "quickly": True}}
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Counts legs.",
        "parameters": {
            "type": "object",
            "properties": {
                _KEY: {"type": "string", "description": "Which."},
                "quickly": {"type": "boolean", "description": "How."},
            },
            "required": [_KEY],
        },
    },
}


@dataclass(frozen=True)
class Spelling:
    """How a template reads thoughts and calls."""

    thoughts: str
    """The key of the thoughts."""
    as_text: bool = False
    """Whether a call's arguments are JSON text."""
    content: str | None = ""
    """The content of a message that only calls tools; `absent` if it has none."""
    in_parts: bool = False
    """Whether a content is a list of parts, of which texts are one kind, as templates of vision models read it."""

    def of(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Messages as the template reads them."""
        return [self._message(message) for message in messages]

    def _message(self, message: Message) -> dict[str, Any]:
        spelled = template_message(message)
        if self.thoughts != "reasoning_content" and "reasoning_content" in spelled:
            spelled[self.thoughts] = spelled.pop("reasoning_content")
        if message.get("tool_calls"):
            self._calls(spelled)
        if self.in_parts and isinstance(spelled.get("content"), str):
            spelled["content"] = [{"type": "text", "text": spelled["content"]}]
        return spelled

    def _calls(self, spelled: dict[str, Any]) -> None:
        if self.as_text:
            for call in spelled["tool_calls"]:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        if not spelled["content"]:
            if self.content == _ABSENT:
                del spelled["content"]
            else:
                spelled["content"] = self.content


def plain_spelling(template: Template, variables: Mapping[str, Any]) -> Spelling:
    """The form in which a template shows a text."""
    usual = Spelling(template.thoughts)
    in_parts = replace(usual, in_parts=True)
    given = {**variables, "tools": None, "documents": None, "add_generation_prompt": False}
    chat: list[Message] = [{"role": "user", "content": _NAME}, {"role": "assistant", "content": _VALUE}]
    shown = [_NAME in (text := _text(template, form.of(chat), given)) and _VALUE in text for form in (usual, in_parts)]
    return in_parts if shown == [False, True] else usual


def calling_spelling(template: Template, plain: Spelling, variables: Mapping[str, Any]) -> Spelling:
    """The form in which a template shows a call whole: the first of those that are tried.

    Where none shows it, the plain form: a template that shows no calls is found when a chat with calls is rendered.
    """
    partly: Spelling | None = None
    for content in ("", None, _ABSENT):
        for as_text in (False, True):
            tried = replace(plain, as_text=as_text, content=content)
            grade = _grade(template, tried, variables)
            if grade == 2:
                return tried
            if grade == 1 and partly is None:
                partly = tried
    return partly or plain


def _grade(template: Template, spelling: Spelling, variables: Mapping[str, Any]) -> int:
    """2 if a call is shown, 1 if its arguments are Python or JSON inside JSON, 0 if it is not shown."""
    asked: Message = {"role": "user", "content": "How many?"}
    calling: Message = {"role": "assistant", "content": "", "tool_calls": [_CALL]}  # type: ignore[list-item]
    given = {**variables, "tools": [_TOOL], "documents": None, "add_generation_prompt": False}
    text = _text(template, spelling.of([asked, calling]), given)
    without = _text(template, spelling.of([asked]), given)
    if any(text.count(part) <= without.count(part) for part in (_NAME, _VALUE)):
        return 0
    odd = ("{'" + _KEY, '\\"' + _KEY)
    return 1 if any(text.count(part) > without.count(part) for part in odd) else 2


def _text(template: Template, messages: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> str:
    """A rendering; nothing if the template refuses the messages."""
    try:
        return template.render(messages, given)
    except DataError:
        return ""
