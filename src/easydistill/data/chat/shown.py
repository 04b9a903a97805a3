"""What a template leaves out of a chat."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from easydistill.data.chat.sentinels import CALLS, CONTENT, THOUGHTS, Located, replaced, wrapped
from easydistill.data.messages import Chat, Message, is_learned, text_of

TURN, TOOL_CALL, TOOLS, TOOL_RESULT, SYSTEM, DEVELOPER, TEXT = (
    "turn",
    "tool call",
    "tools",
    "tool result",
    "system",
    "developer",
    "text",
)
_OF_ROLE = {"system": SYSTEM, "developer": DEVELOPER, "tool": TOOL_RESULT, "assistant": TURN}
_WORDS = {
    THOUGHTS: "the thoughts of",
    TOOL_CALL: "the tool calls of",
    TOOLS: "the tools of",
    TOOL_RESULT: "a tool's result in",
    SYSTEM: "the system text of",
    DEVELOPER: "the developer's text in",
    TURN: "an answer in",
    TEXT: "a message's text in",
}
_WAYS_OUT = {
    THOUGHTS: "dataset.thoughts: inline writes them into the answer, drop leaves them out knowingly",
    TOOL_CALL: "set dataset.template to a template of the family that shows tool calls",
    TOOLS: "set dataset.template to a template of the family that shows tools",
}
_OTHERWISE = "set dataset.template to a template that shows it, or take it out of the rows"

Text = Callable[[Chat], str]
"""A chat's text, without a generation prompt."""


@dataclass(frozen=True)
class Missing:
    """A part of a chat that the template does not show."""

    kind: str
    """thoughts, tool call, tools, tool result, system, developer, turn (an answer's text) or text (of another role)."""
    message: int
    """The message that has it; −1 for the chat's tools."""


def missing_parts(
    chat: Chat, text: str, located: Located | None, render: Text, reads_tools: bool = True
) -> list[Missing]:
    """What is not shown of a chat whose text is given.

    Args:
        located: where its parts stand, if that is known. If not, a part that is nowhere in the text is rendered again
            with something else in its place: where that changes nothing, it is not shown.
        reads_tools: whether the template reads the chat's tools at all.
    """
    if located is None:
        located = _searched(chat, text, render)
    found = {_missing(chat.messages[part.message], part.kind, part.message) for part in _unseen(located)}
    found |= set(_inline_thoughts(chat, text))
    found |= set(_bare_calls(chat, text, located))
    if chat.tools and not (reads_tools and _shows_tools(chat, text)):
        found.add(Missing(TOOLS, -1))
    return sorted(found, key=lambda part: (part.message, part.kind))


def _unseen(located: Located) -> Iterator[Any]:
    for number, part in enumerate(located.parts):
        # A call is shown whole or not at all.
        if not (located.is_whole(number) if part.kind == CALLS else located.is_shown(number)):
            yield part


def _missing(message: Message, kind: str, at: int) -> Missing:
    if kind == THOUGHTS:
        return Missing(THOUGHTS, at)
    if kind == CALLS:
        return Missing(TOOL_CALL, at)
    return Missing(_OF_ROLE.get(message["role"], TEXT), at)


def _inline_thoughts(chat: Chat, text: str) -> Iterator[Missing]:
    """Thoughts in an answer's own text: some templates cut them out."""
    for at, message in enumerate(chat.messages):
        if message["role"] == "assistant" and "</think>" in text_of(message):
            thought = text_of(message).partition("</think>")[0].rpartition("<think>")[2].strip()
            if thought and thought not in text:
                yield Missing(THOUGHTS, at)


def _bare_calls(chat: Chat, text: str, located: Located) -> Iterator[Missing]:
    """Calls whose arguments have no text: their keys and numbers have to be found in the text."""
    for at, message in enumerate(chat.messages):
        for call in message.get("tool_calls", ()):
            if not all(key in text for key in call["arguments"]):
                yield Missing(TOOL_CALL, at)


def _shows_tools(chat: Chat, text: str) -> bool:
    return all(str(tool.get("function", tool).get("name", "")) in text for tool in chat.tools)


def _searched(chat: Chat, text: str, render: Text) -> Located:
    """Which parts are shown, by searching for them and by replacing those that are not found."""
    _, parts = wrapped(chat.messages)
    found = Located(parts)
    for number, part in enumerate(parts):
        if part.text in text or json.dumps(part.text, ensure_ascii=False)[1:-1] in text or _matters(chat, part, render):
            found.opened[number] = found.closed[number] = 0
    return found


def _matters(chat: Chat, part: Any, render: Text) -> bool:
    """Whether another text in a part's place changes what is rendered."""
    from easydistill.errors import DataError

    messages = list(chat.messages)
    changes: Mapping[str, Callable[[str], str]] = {
        kind: (lambda text: "\ufde2x\ufde3") if kind == part.kind else str for kind in (CONTENT, THOUGHTS, CALLS)
    }
    messages[part.message] = replaced(messages[part.message], changes[CONTENT], changes[THOUGHTS], changes[CALLS])
    try:
        return render(chat.with_messages(messages)) != render(chat)
    except DataError:
        return True


def refusal(chat: Chat, missing: Iterable[Missing]) -> str | None:
    """Why a chat must not be trained on, if so: a call that would be learned as an empty answer."""
    for part in missing:
        if part.kind == TOOL_CALL and is_learned(chat.messages[part.message]):
            return (
                f"the chat template does not show the tool calls of message {part.message + 1}, so an answer without "
                f"them would be learned\n    → {_WAYS_OUT[TOOL_CALL]}, or give the message `weight: 0`"
            )
    return None


def tell(counts: Mapping[str, int], rows: int) -> list[str]:
    """A line for each kind of part that the template leaves out, with the number of rows and the way out."""
    return [
        f"{describe(kind)} {count} of {rows} rows\n    → {_WAYS_OUT.get(kind, _OTHERWISE)}"
        for kind, count in counts.items()
    ]


def describe(kind: str) -> str:
    """A kind in words, before a number of rows."""
    return f"the chat template does not show {_WORDS.get(kind, kind + ' of')}"


def count_kinds(chats: Iterable[Iterable[Missing]]) -> dict[str, int]:
    """How many chats lack each kind, most frequent first."""
    counted: Counter[str] = Counter()
    for missing in chats:
        counted.update({part.kind for part in missing})
    return dict(counted.most_common())
