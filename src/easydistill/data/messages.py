"""The messages of a chat: text, thoughts, tool calls and their results, and what a chat template is given with them.

A message is a JSON object. A message of text alone has `role` and `content` and nothing else: ids, request keys and
signals of plain text rows are hashed from just these. Every other key is there only where it says something.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, Protocol, TypedDict


class ToolCall(TypedDict):
    """A call that the assistant makes."""

    id: NotRequired[str]
    name: str
    arguments: dict[str, Any]


class Message(TypedDict, total=False):
    """One turn of a chat.

    `content` is always there; it is empty in an assistant's message that only calls tools.
    """

    role: str
    """system, developer, user, assistant or tool."""
    content: str
    reasoning_content: str
    """The assistant's thoughts before `content`, without the marks that templates put around them."""
    tool_calls: list[ToolCall]
    """The calls that the assistant makes after `content`."""
    tool_call_id: str
    """Of a tool's result: the call that it answers."""
    name: str
    """Of a tool's result: the tool. Of another message: who speaks."""
    weight: int
    """0 in an assistant's message that is context and not learned; otherwise absent."""


Tool = dict[str, Any]
"""A tool that the assistant may call, as OpenAI describes it: `{"type": "function", "function": {"name": …}}`."""


class HasChat(Protocol):
    """A chat, or a row that holds one."""

    @property
    def messages(self) -> tuple[Message, ...]: ...

    @property
    def tools(self) -> tuple[Tool, ...]: ...

    @property
    def template_kwargs(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Chat:
    """Messages, and what a chat template is given besides."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    """The tools that the assistant may call."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """The row's own variables of the template, such as `enable_thinking`."""

    @classmethod
    def of(cls, chat: HasChat | Sequence[Message]) -> Chat:
        """The chat of a row, or of messages that bring neither tools nor variables."""
        if isinstance(chat, Chat):
            return chat
        if isinstance(chat, Sequence):
            return cls(tuple(chat))
        return cls(chat.messages, chat.tools, chat.template_kwargs)

    def with_messages(self, messages: Iterable[Message]) -> Chat:
        """Other messages with the same tools and variables."""
        return Chat(tuple(messages), self.tools, self.template_kwargs)


def identity_of(messages: Iterable[Message], chat: HasChat) -> Any:
    """What ids and keys are hashed from: the messages alone in a chat without tools and variables of its own."""
    extra: dict[str, Any] = {}
    if chat.tools:
        extra["tools"] = list(chat.tools)
    if chat.template_kwargs:
        extra["template_kwargs"] = chat.template_kwargs
    return {"messages": list(messages), **extra} if extra else list(messages)


def answer_message(text: str, reasoning: str | None = None, tool_calls: Sequence[ToolCall] = ()) -> Message:
    """An assistant's message, with its reasoning and its calls beside the text if there are any."""
    answer: Message = {"role": "assistant", "content": text}
    if reasoning:
        answer["reasoning_content"] = reasoning
    if tool_calls:
        answer["tool_calls"] = list(tool_calls)
    return answer


def is_learned(message: Message) -> bool:
    """Whether a message is one that a student learns to write."""
    return message["role"] == "assistant" and message.get("weight", 1) != 0


def says_something(message: Message) -> bool:
    """Whether a message has text or calls; thoughts alone are no answer."""
    return bool(message["content"].strip()) or bool(message.get("tool_calls"))


def as_context(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The messages as a prompt: without the marks of what is learned, which change no answer."""
    return tuple(
        Message(**{name: value for name, value in message.items() if name != "weight"})  # type: ignore[typeddict-item]
        if "weight" in message
        else message
        for message in messages
    )


def full_text(message: Message) -> str:
    """Everything that a message says, as one text: its thoughts, its content, its calls. For a message of text alone,
    the content itself."""
    parts = [message.get("reasoning_content", ""), message["content"], *map(call_text, message.get("tool_calls", ()))]
    return "\n".join(part for part in parts if part)


def said(message: Message) -> str:
    """What a message says to whoever reads the chat: its content and its calls, as one text. For a message of text
    alone, the content itself."""
    parts = [message["content"], *map(call_text, message.get("tool_calls", ()))]
    return "\n".join(part for part in parts if part)


def call_text(call: ToolCall) -> str:
    """A call as people read it: `count_legs({"animal": "spider"})`."""
    return f"{call['name']}({json.dumps(call['arguments'], ensure_ascii=False)})"


def openai_message(message: Message) -> dict[str, Any]:
    """A message as OpenAI's protocol and chat files spell it: calls under `function`, arguments as JSON text."""
    return _spelled(message, lambda arguments: json.dumps(arguments, ensure_ascii=False))


def template_message(message: Message) -> dict[str, Any]:
    """A message as chat templates read it: calls under `function`, arguments as an object."""
    spelled = _spelled(message, dict)
    spelled.pop("weight", None)
    return spelled


def _spelled(message: Message, arguments: Any) -> dict[str, Any]:
    spelled: dict[str, Any] = dict(message)
    if "tool_calls" in message:
        spelled["tool_calls"] = [_spelled_call(call, arguments) for call in message["tool_calls"]]
    return spelled


def _spelled_call(call: Mapping[str, Any], arguments: Any) -> dict[str, Any]:
    own = {"id": call["id"]} if "id" in call else {}
    return {**own, "type": "function", "function": {"name": call["name"], "arguments": arguments(call["arguments"])}}
