"""The messages of a chat: text, images, thoughts, tool calls and their results, and what a chat template is given with
them.

A message is a JSON object. A message of text alone has `role` and `content` and nothing else, and its content is a
text: ids, request keys and signals of plain text rows are hashed from just these. Every other key is there only where
it says something. Only the content of a message with images is a list of parts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, Protocol, TypedDict

IMAGE_TAG = "<image>"
"""Where an image stands, in a text: in files, and where people read a chat."""


class TextPart(TypedDict):
    """Text between images."""

    type: Literal["text"]
    text: str


class ImagePart(TypedDict):
    """An image among the parts of a message."""

    type: Literal["image"]
    image: str
    """`sha256:<hex>`, of the image's bytes as they were given (`data/images`)."""


Part = TextPart | ImagePart
Content = str | list[Part]
"""Of a message: a text; or parts, at least one of which is an image."""


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
    content: Content
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


def text_of(message: Message) -> str:
    """The text of a message, without its images. For a message of text alone, the content itself."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def have_images(messages: Iterable[Message]) -> bool:
    """Whether one of the messages has images."""
    # A loop: rows of text are many, and this is asked of all.
    for message in messages:  # noqa: SIM110
        if type(message["content"]) is not str:
            return True
    return False


def images_of(*messages: Message) -> tuple[str, ...]:
    """The digests of the images of messages, in order."""
    if not have_images(messages):
        return ()
    return tuple(
        part["image"]
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == "image"
    )


def with_text(message: Message, change: Callable[[str], str]) -> Message:
    """A message with another text: of a message with images, its first one, put before them if it has none."""
    changed: Message = message.copy()
    content = message["content"]
    if isinstance(content, str):
        changed["content"] = change(content)
        return changed
    texts = [at for at, part in enumerate(content) if part["type"] == "text"]
    first = texts[0] if texts else 0
    old = content[first : first + 1] if texts else []
    new: TextPart = {"type": "text", "text": change("".join(part["text"] for part in old if part["type"] == "text"))}
    changed["content"] = [*content[:first], new, *content[first + len(old) :]]
    return changed


def tagged_text(message: Message) -> str:
    """The text of a message with `<image>` where each image stands. For a message of text alone, the content itself."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else IMAGE_TAG for part in content)


def with_images_placed(text: str, images: Sequence[str], *, at_tags: bool = True) -> Content:
    """A text with images, by digest: where its `<image>` tags are, if they are as many, or else before it, in order.

    Without images it is the text itself.

    Args:
        at_tags: if not, they come before it in any case.
    """
    if not images:
        return text
    pieces = text.split(IMAGE_TAG) if at_tags else [text]
    if len(pieces) != len(images) + 1:
        pieces = [""] * len(images) + [text]
    parts: list[Part] = []
    for piece, image in zip(pieces, (*images, None), strict=True):
        if piece:
            parts.append({"type": "text", "text": piece})
        if image is not None:
            parts.append({"type": "image", "image": image})
    return parts


def says_something(message: Message) -> bool:
    """Whether a message has text, images or calls; thoughts alone are no answer."""
    content = message["content"]
    said = bool(content.strip()) if isinstance(content, str) else bool(content)
    return said or bool(message.get("tool_calls"))


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
    the content itself; an image is `<image>`."""
    parts = [message.get("reasoning_content", ""), tagged_text(message), *map(call_text, message.get("tool_calls", ()))]
    return "\n".join(part for part in parts if part)


def said(message: Message) -> str:
    """What a message says to whoever reads the chat: its content and its calls, as one text. For a message of text
    alone, the content itself; an image is `<image>`."""
    parts = [tagged_text(message), *map(call_text, message.get("tool_calls", ()))]
    return "\n".join(part for part in parts if part)


def call_text(call: ToolCall) -> str:
    """A call as people read it: `count_legs({"animal": "spider"})`."""
    return f"{call['name']}({json.dumps(call['arguments'], ensure_ascii=False)})"


def openai_message(message: Message) -> dict[str, Any]:
    """A message as OpenAI's protocol and chat files spell it: calls under `function`, arguments as JSON text."""
    return _spelled(message, lambda arguments: json.dumps(arguments, ensure_ascii=False))


def template_message(message: Message) -> dict[str, Any]:
    """A message as chat templates read it: calls under `function`, arguments as an object. Images are parts as they
    are here."""
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
