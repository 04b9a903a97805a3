"""A whole chat in one text → its messages, for the forms in which it is certain who says what.

Read are texts whose turns stand between tokens that no text contains: ChatML (`<|im_start|>user`), Llama 3
(`<|start_header_id|>user<|end_header_id|>`), OASST, Zephyr and Phi (`<|prompter|>`, `<|user|>`, `<|assistant|>`); those
of Glaive, where every answer ends with `<|endoftext|>` (`USER: …`, `ASSISTANT: …`, `FUNCTION RESPONSE: …`); and those
of HH and Guanaco (`\\n\\nHuman: …`, `### Human: …`). The turns have to follow each other as in a chat. Everything
else is left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from easydistill.data.reading import keys
from easydistill.data.reading.prompts import dialogue
from easydistill.data.reading.turns import ROLES
from easydistill.data.reading.values import as_turns, json_in
from easydistill.data.row_files import MalformedRow

_COLUMNS = (*keys.CHATS, "text")
_MARKS = (
    re.compile(r"<\|im_start\|>(?P<role>\w+)[ \t]*\n"),
    re.compile(r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\s*"),
    re.compile(r"<\|(?P<role>system|user|human|prompter|assistant|bot)\|>\s*"),
)
_BEGINS = re.compile(r"\A\s*(?:<s>|<\|begin_of_text\|>|<\|endoftext\|>)?\s*")
_END = re.compile(r"\s*(?:<\|im_end\|>|<\|eot_id\|>|<\|end_of_text\|>|<\|endoftext\|>|<\|end\|>|</s>)\s*\Z")
_TOKEN = re.compile(r"<\|\w+\|>")
_GLAIVE = re.compile(r"(?:\A|\n\n\n)\s*(?P<role>USER|ASSISTANT|FUNCTION RESPONSE): ?")
_ENDED = "<|endoftext|>"
_GUANACO = re.compile(r"### (?P<role>Human|Assistant): ?")
_CALL = re.compile(
    r"""\{\s*"name":\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*"arguments":\s*(?:'(?P<quoted>.*)'|(?P<plain>\{.*\}))\s*\}""",
    re.DOTALL,
)
_CALLING = "<functioncall>"
_BOILERPLATE = re.compile(r" with access to the following functions\. Use them if required -?\Z")
_SPOKEN = re.compile(r"(?:\A|\n|### ?)(?:USER|User|Human|HUMAN|Instruction|ASSISTANT|Assistant):|\[INST\]|<\|\w+\|>")

Turn = tuple[str, str]
"""(role, text)."""


def with_messages(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose chat is one text, with the chat's messages instead; any other row as it is.

    Raises:
        MalformedRow: the text is a chat in such a form, and a call in it cannot be read.
    """
    for name in _COLUMNS:
        text = row.get(name)
        if not isinstance(text, str) or as_turns(text):
            continue
        messages = chat_in(text)
        if messages is not None:
            rest = {key: value for key, value in row.items() if key != name}
            return {**_with_glaive_system(rest), "messages": messages}
    return row


def hint_of_text(row: dict[str, Any]) -> str | None:
    """What to do with a row whose chat is, as it seems, a text that is not read."""
    for name in _COLUMNS:
        if isinstance(row.get(name), str) and _SPOKEN.search(row[name]):
            return (
                f"`{name}` seems to hold a whole chat as one text, of which it is not certain who says what: write it "
                'as `messages`: [{"role": …, "content": …}]'
            )
    if isinstance(row.get("text"), str) and isinstance(row.get("role"), str) and "parent_id" in row:
        return "a row holds one message of a tree: join each path from its root to a leaf into `messages`"
    return None


def chat_in(text: str) -> list[dict[str, Any]] | None:
    """The messages of a text that is a whole chat; None if that is not certain."""
    for find in (_by_tokens, _glaive, _guanaco):
        turns = find(text)
        if turns is not None:
            return [_message(*turn) for turn in turns] if _is_a_chat([role for role, _ in turns]) else None
    spoken = dialogue(text)
    if spoken is None or not _is_a_chat([message["role"] for message in spoken]):
        return None
    return [dict(message) for message in spoken]


def _by_tokens(text: str) -> list[Turn] | None:
    begins = _BEGINS.match(text)
    start = begins.end() if begins else 0
    for mark in _MARKS:
        if mark.match(text, start):
            turns = list(_parts(mark, text[start:]))
            # A token that is none of a turn's may mean anything.
            return None if any(_TOKEN.search(said) for _, said in turns) else turns
    return None


def _parts(mark: re.Pattern[str], text: str) -> Iterable[Turn]:
    found = list(mark.finditer(text))
    for this, following in zip(found, [*found[1:], None], strict=True):
        said = text[this.end() : len(text) if following is None else following.start()]
        while (shorter := _END.sub("", said)) != said:
            said = shorter
        yield ROLES.get(this["role"].lower().replace(" ", "_"), this["role"]), said.strip()


def _glaive(text: str) -> list[Turn] | None:
    if not _GLAIVE.match(text) or _ENDED not in text:
        return None
    found = list(_GLAIVE.finditer(text))
    for this, following in zip(found, [*found[1:], None], strict=True):
        said = text[this.end() : len(text) if following is None else following.start()]
        answers = this["role"] == "ASSISTANT"
        if said.count(_ENDED) != answers or not said.rstrip().endswith(_ENDED if answers else ""):
            return None
    return list(_parts(_GLAIVE, text))


def _guanaco(text: str) -> list[Turn] | None:
    return list(_parts(_GUANACO, text)) if text.lstrip().startswith("### Human:") else None


def _is_a_chat(roles: Sequence[str]) -> bool:
    """Whether turns follow each other as in a chat: perhaps a system's, then user and assistant in turn, with results
    of tools before an assistant's next turn."""
    before = "assistant"
    for number, role in enumerate(roles):
        if role == "system" and number == 0:
            continue
        allowed = {"assistant": ("user", "tool"), "user": ("assistant",), "tool": ("assistant", "tool")}
        if role not in allowed[before] or (role == "tool" and number == 0):
            return False
        before = role
    return "user" in roles


def _message(role: str, said: str) -> dict[str, Any]:
    if role != "assistant" or _CALLING not in said:
        return {"role": role, "content": said}
    before, _, call = said.partition(_CALLING)
    found = _CALL.fullmatch(call.strip())
    try:
        if found is None:
            raise ValueError
        quoted = found["quoted"]
        arguments = json_in(found["plain"] if quoted is None else quoted.replace("\\'", "'"))
        called = {"name": json_in(found["name"]), "arguments": arguments}
    except ValueError:
        raise MalformedRow(f"a tool call in a text is not readable: {call.strip()[:60]!r}") from None
    return {"role": role, "content": before.strip(), "tool_calls": [called]}


def _with_glaive_system(row: dict[str, Any]) -> dict[str, Any]:
    """The row with Glaive's system text apart from the tools that it lists."""
    text = row.get("system")
    if not isinstance(text, str) or not text.lstrip().startswith("SYSTEM:"):
        return row
    said = text.lstrip().removeprefix("SYSTEM:").strip()
    start = said.find("\n{")
    tools = [] if start < 0 else _objects(said[start:])
    if tools and not row.get("tools") and all("name" in tool for tool in tools):
        # What remains of the usual sentence would announce a list that stands elsewhere.
        said = _BOILERPLATE.sub("", said[:start].strip())
        return {**row, "system": said, "tools": tools}
    return {**row, "system": said}


def _objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects of which a text consists; none if it consists of something else."""
    found: list[dict[str, Any]] = []
    decoder, at = json.JSONDecoder(), 0
    while rest := text[at:].lstrip():
        at = len(text) - len(rest)
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        if not isinstance(value, dict):
            return []
        found.append(value)
    return found
