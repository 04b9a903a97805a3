"""A list of turns → the messages of a chat: OpenAI's messages, ShareGPT's turns, exchanges of prompt and answer.

A turn says who speaks (`role` or `from`, in any of the words below) and what (`content` or `value`). It may have
thoughts, calls, and marks that it is not learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from easydistill.data.messages import Message, Tool, says_something, text_of
from easydistill.data.reading.calls import are_calls, calls_of, tools_of
from easydistill.data.reading.marks import FLAGS, is_off, is_on
from easydistill.data.reading.media import IMAGE_PLACE
from easydistill.data.reading.parts import Content, content_of, result_text, thought_in
from easydistill.data.reading.values import ROLE_KEYS, as_list, is_given, is_text, names_of, turn_list
from easydistill.data.row_files import MalformedRow

_WORDS = {
    "system": ("system", "system_prompt"),
    "developer": ("developer",),
    "user": ("user", "human", "prompter", "users"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatgpt", "bing", "bard", "chatbot", "ai", "claude", "llm"),
    "tool": (
        "tool",
        "function",
        "observation",
        "ipython",
        "tool_response",
        "tool_result",
        "tool_output",
        "function_response",
        "function_result",
        "function_output",
        "environment",
    ),
}
ROLES = {word: role for role, words in _WORDS.items() for word in words}
"""Words for roles, in lower case → ours."""
_PLAIN_ROLES = ("system", "user", "assistant")
_CALLING = frozenset({"function_call", "tool_call", "tool_calls", "function_calls", "functioncall"})
"""Roles of the assistant's turns that are nothing but calls."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thoughts", "thought")
"""Keys of thoughts, in a message and beside an answer; the first that holds text is read."""
_DETAILS = ("reasoning_details", "thinking_blocks")
"""Keys of thoughts in parts, as some servers give them."""
_NOTED = ("mask", "masked", "loss_mask", "training", "training_detail", "train_detail", "eot", "end_turn", "refusal")
"""Keys of an assistant's turn that could say what of it is learned, or that it ends otherwise, and are not read."""
_CONTENTS = ("content", "value", "text", "message", "parts")
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_ASKS = ("input", "instruction", "prompt", "question", "human", "user", "query")
_ANSWERS = ("output", "response", "answer", "completion", "assistant", "gpt", "bot")
_THINK = ("<think>", "</think>")


@dataclass
class Turns:
    """The messages of a chat, and what was found with them."""

    messages: list[Message] = field(default_factory=list)
    tools: tuple[Tool, ...] = ()
    """Tools that stand in a message; other formats have them beside the chat."""
    unread: set[str] = field(default_factory=set)
    """Keys of turns that say something and are not read."""


def turns_of(value: Any, column: str) -> Turns:
    """The chat of a column.

    Raises:
        MalformedRow: it is no list of turns, or one of them is not readable.
    """
    items = turn_list(value)
    if not items:
        raise MalformedRow(f"`{column}` must be a list that is not empty")
    found = Turns()
    calling = False
    for item in items:
        if _is_plain(item):
            found.messages.append({"role": item["role"], "content": item["content"]})
            calling = False
            continue
        if not isinstance(item, dict):
            raise MalformedRow(f"a turn of `{column}` is not an object: a message needs a role and content")
        if not any(item.get(name) is not None for name in ROLE_KEYS) and _is_exchange(item):
            found.messages += _exchange(item, found)
            calling = False
            continue
        message_list, calls_only = _turn(item, column, found)
        if calls_only and calling:
            # Calls that are made at once are turns of their own here, and one message elsewhere.
            found.messages[-1]["tool_calls"] = [*found.messages[-1]["tool_calls"], *message_list[0]["tool_calls"]]
        else:
            found.messages += message_list
        calling = calls_only
    return found


def _is_plain(item: Any) -> bool:
    """Whether a turn is a message of text as it is written here, as nearly all are."""
    return (
        isinstance(item, dict)
        and len(item) == 2
        and item.get("role") in _PLAIN_ROLES
        and isinstance(item.get("content"), str)
    )


def _turn(item: dict[str, Any], column: str, found: Turns) -> tuple[list[Message], bool]:
    """The messages of a turn, and whether it is nothing but calls."""
    role, calling = _role(item, column)
    _refuse_unreadable(item)
    if is_given(item.get("tools")):
        found.tools = tools_of(item["tools"])
    if calling:
        return [_calling_message(item, found)], True
    if role == "assistant":
        content = content_of(_content(item), _where(role, item)).of_text(_where(role, item))
        return [_assistant_message(item, content, found)], False
    found.unread |= {f"{name} of a {role} turn" for name in (*THOUGHTS, "tool_calls") if is_given(item.get(name))}
    return [_tool_message(item)] if role == "tool" else _asking_messages(item, role, found), False


def _asking_messages(item: dict[str, Any], role: str, found: Turns) -> list[Message]:
    """The message of a turn of the user or the system, after the results of tools in it."""
    content = content_of(_content(item), _where(role, item))
    if role != "user":
        content.of_text(_where(role, item))
    if not content.given and not content.results:
        # Some templates are given an empty system message for the tools in it.
        if role in ("system", "developer"):
            return []
        raise MalformedRow(f"{_where(role, item)} is not text")
    if content.calls or content.thoughts:
        raise MalformedRow(f"the {role} message makes tool calls or has thoughts, which only the assistant can")
    _note_learned(item, role, found)
    own = [_named({"role": role, "content": content.said}, item)]
    return [*content.results, *(own if content.said or not content.results else [])]


def _role(item: dict[str, Any], column: str) -> tuple[str, bool]:
    key = next((name for name in ROLE_KEYS if item.get(name) is not None), None)
    given = item.get(key) if key is not None else None
    if isinstance(given, str):
        word = given.strip().lower().replace("-", "_").replace(" ", "_")
        if word in _CALLING:
            return "assistant", True
        if word == "function" and not is_given(item.get("name")) and are_calls(_content(item)):
            # LLaMA-Factory's word for a call. A result under this role names its function.
            return "assistant", True
        if word in ROLES:
            return ROLES[word], False
    if key == "from":
        raise MalformedRow(f"a turn of `{column}` is from {given!r}")
    known = ", ".join(sorted(_WORDS))
    raise MalformedRow(f"a message needs a role (one of {known}), not {given!r} (it has: {names_of(item)})")


def _where(role: str, item: dict[str, Any]) -> str:
    return "the value of a turn" if "value" in item else f"the content of the {role} message"


def _content(item: dict[str, Any]) -> Any:
    return next((item[name] for name in _CONTENTS if item.get(name) is not None), None)


def _refuse_unreadable(item: dict[str, Any]) -> None:
    for name in ("prefix", "partial"):
        if item.get(name) and not is_off(item[name]):
            raise MalformedRow(
                f"`{name}` marks an answer that the model is to continue, not a finished one, and no job continues "
                "answers: remove the message, or finish it and remove the mark"
            )
    for name in _MEDIA:
        if is_given(item.get(name)):
            raise MalformedRow(
                f"a message holds `{name}`: put its images into the message's content, as parts "
                '{"type": "image_url", "image_url": …}, or into the column `images` of the row; videos and sound are '
                "not read",
                IMAGE_PLACE,
            )
    channel = item.get("channel")
    if isinstance(channel, str) and channel.strip().lower() not in ("", "final"):
        raise MalformedRow(
            f"a message of the channel {channel!r} is not an answer but a part of one: write thoughts as "
            "`reasoning_content` of the answer's message, and calls as its `tool_calls`"
        )


def _calling_message(item: dict[str, Any], found: Turns) -> Message:
    value = _content(item)
    message: Message = {"role": "assistant", "content": ""}
    thoughts = _thoughts(item, found)
    if isinstance(value, str) and value.lstrip().startswith(_THINK[0]) and _THINK[1] in value:
        before, _, value = value.partition(_THINK[1])
        thoughts = thoughts or before.lstrip().removeprefix(_THINK[0]).strip()
    if thoughts:
        message["reasoning_content"] = thoughts
    calls = calls_of(value if value is not None else item.get("tool_calls"))
    if not calls:
        raise MalformedRow("a turn of the assistant that should call a tool is empty")
    message["tool_calls"] = calls
    return _flagged(message, item, found)


def _tool_message(item: dict[str, Any]) -> Message:
    message: Message = {"role": "tool", "content": result_text(_content(item))}
    if isinstance(item.get("tool_call_id"), str) and item["tool_call_id"]:
        message["tool_call_id"] = item["tool_call_id"]
    return _named(message, item)


def _assistant_message(item: dict[str, Any], content: Content, found: Turns) -> Message:
    message: Message = {"role": "assistant", "content": content.text}
    thoughts = _thoughts(item, found) or content.thoughts
    if thoughts:
        message["reasoning_content"] = thoughts
    calls = content.calls or calls_of(item.get("tool_calls")) or calls_of(item.get("function_call"))
    if calls:
        message["tool_calls"] = calls
    if not content.given and not says_something(message) and not thoughts:
        raise MalformedRow(f"{_where('assistant', item)} is not text, and it calls no tool")
    found.unread |= {f"{name} of a turn" for name in _NOTED if item.get(name) not in (None, "", [])}
    return _named(_flagged(message, item, found), item)


def _thoughts(item: dict[str, Any], found: Turns) -> str:
    text = next((item[name] for name in THOUGHTS if isinstance(item.get(name), str) and item[name]), "")
    for name, details in _in_parts(item):
        if details and not text:
            text = "".join(thought_in(detail) for detail in details)
            if not text:
                found.unread.add(name)
    found.unread |= {name for name in THOUGHTS if _says_other(item.get(name), text)}
    return text


def _in_parts(item: dict[str, Any]) -> Iterator[tuple[str, list[Any] | None]]:
    """(key, parts) of each field that may hold thoughts in parts."""
    for name in (*_DETAILS, *(name for name in THOUGHTS if isinstance(item.get(name), list | tuple))):
        yield name, as_list(item.get(name))


def _says_other(value: Any, text: str) -> bool:
    return is_given(value) and value != text and not isinstance(value, bool | list | tuple)


def _named(message: Message, item: dict[str, Any]) -> Message:
    if isinstance(item.get("name"), str) and item["name"]:
        message["name"] = item["name"]
    return message


def _flagged(message: Message, item: dict[str, Any], found: Turns) -> Message:
    """The message, marked if its turn says that it is not learned."""
    for name in FLAGS:
        value = item.get(name)
        if value is None:
            continue
        if is_off(value):
            message["weight"] = 0
        elif not is_on(value):
            found.unread.add(name)
    return message


def _note_learned(item: dict[str, Any], role: str, found: Turns) -> None:
    """Only the assistant's turns are learned: a mark that asks for another one is not followed."""
    if any(item.get(name) is not None and not is_off(item[name]) for name in FLAGS):
        found.unread.add(f"{next(name for name in FLAGS if item.get(name) is not None)} of a {role} turn")


def _is_exchange(item: dict[str, Any]) -> bool:
    return any(name in item for name in _ASKS) and any(name in item for name in _ANSWERS)


def _exchange(item: dict[str, Any], found: Turns) -> list[Message]:
    """The messages of a turn that holds a prompt and its answer."""
    messages: list[Message] = []
    if is_text(item.get("system")):
        messages.append({"role": "system", "content": item["system"]})
    for role, names in (("user", _ASKS), ("assistant", _ANSWERS)):
        value = next((item[name] for name in names if item.get(name) is not None), None)
        if not isinstance(value, str):
            raise MalformedRow("a turn of the chat that holds a prompt and its answer has one that is not text")
        message: Message = {"role": role, "content": value}
        thoughts = next((item[name] for name in THOUGHTS if is_text(item.get(name))), "")
        if role == "assistant" and thoughts:
            message["reasoning_content"] = thoughts
        messages.append(_flagged(message, item, found) if role == "assistant" else message)
    return messages


def alternating(texts: Sequence[Any], column: str) -> list[Message]:
    """The messages of a list of texts in which user and assistant take turns."""
    if not all(isinstance(text, str) for text in texts):
        raise MalformedRow(f"`{column}` must be a list of texts, or of messages")
    return [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(texts)]


def with_system(messages: Iterable[Message], texts: dict[str, str]) -> list[Message]:
    """The chat with the system text that stands beside it.

    Args:
        texts: the texts of the columns for it, by column.

    Raises:
        MalformedRow: there are two that differ, or the chat has another one.
    """
    chat = list(messages)
    given = {name: text for name, text in texts.items() if text.strip()}
    if not given:
        return chat
    (name, text), *others = given.items()
    for other, words in others:
        if words.strip() != text.strip():
            raise MalformedRow(f"`{name}` and `{other}` hold two system texts that differ: remove one of the columns")
    own = [text_of(message) for message in chat if message["role"] == "system"]
    if own:
        if own[0].strip() == text.strip():
            return chat
        raise MalformedRow(f"`{name}` holds another system text than the chat's own system message: remove one of them")
    return [{"role": "system", "content": text}, *chat]
