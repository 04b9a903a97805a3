"""Structured replies: named texts from tags, from a JSON object, or the whole reply; and how a prompt asks for them.

Input: a reply, the expected fields, and the form in which they were requested. Output: a text for every field, or a
`MalformedReply` with the reason. Nothing is guessed: if a field is missing, empty, unclosed, or given twice with
different contents, the whole reply is malformed.

- `tags`: `<name>text</name>` anywhere in the reply, spelled exactly like this; outer white space is stripped.
- `json`: the reply is one JSON object or contains exactly one fenced block with one; additional keys are allowed.
- `plain`: one field, the whole reply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

Form = Literal["tags", "json", "plain"]
Language = Literal["en", "zh"]
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FENCE = re.compile(r"^[ \t]*+```[ \t]*+(json)?[ \t]*+$", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class MalformedReply:
    """Why a reply does not have the requested form."""

    reason: str
    """A code by which replies are counted: `missing`, `empty`, `unclosed`, `contradictory`, `not_json`, …"""
    detail: str


@dataclass(frozen=True)
class TextField:
    """A text that a reply must contain."""

    name: str
    description: str = ""
    """For the model, in the prompt's language."""
    choices: tuple[str, ...] = ()
    """The schema allows only these. In other forms of reply, the caller must check."""

    def __post_init__(self) -> None:
        check_name(self.name)


def check_name(name: str) -> None:
    """Raise ValueError for a name that cannot be both a tag and a JSON key."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"a field's name consists of lower-case letters, digits and underscores, not {name!r}")


def parse_fields(reply: str, fields: Sequence[TextField], form: Form = "tags") -> dict[str, str] | MalformedReply:
    """Read the fields of a reply, in the same order.

    Raises:
        ValueError: there are no fields, two have the same name, or the form is `plain` and there are several.
    """
    names = _names(fields, form)
    found: dict[str, str] | MalformedReply
    if form == "plain":
        found = {names[0]: reply}
    elif form == "json":
        found = _from_json(reply, names)
    else:
        found = _from_tags(reply, names)
    if isinstance(found, MalformedReply):
        return found
    for name, text in found.items():
        if not any(char.isprintable() and not char.isspace() for char in text):
            return MalformedReply("empty", f"`{name}` is empty")
        if any("\ud800" <= char <= "\udfff" for char in text):
            return MalformedReply("half_character", f"`{name}` contains a lone surrogate")
    return {name: text.strip() for name, text in found.items()}


def _names(fields: Sequence[TextField], form: Form) -> list[str]:
    names = [field.name for field in fields]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"fields need distinct names, not {names}")
    if form == "plain" and len(names) != 1:
        raise ValueError("a plain reply has exactly one field")
    return names


def _from_json(reply: str, names: list[str]) -> dict[str, str] | MalformedReply:
    value = json_object(reply)
    if isinstance(value, MalformedReply):
        return value
    for name in names:
        if name not in value:
            return MalformedReply("missing", f"the object has no `{name}`")
        if not isinstance(value[name], str):
            return MalformedReply("wrong_type", f"`{name}` is not text")
    return {name: value[name] for name in names}


def _from_tags(reply: str, names: list[str]) -> dict[str, str] | MalformedReply:
    found: dict[str, str] = {}
    spans: list[tuple[int, int, str]] = []
    for name in names:
        blocks = _blocks(reply, name)
        if isinstance(blocks, MalformedReply):
            return blocks
        texts = {reply[start:end].strip() for start, end in blocks}
        if not texts:
            return MalformedReply("missing", f"there is no <{name}>")
        if len(texts) > 1:
            return MalformedReply("contradictory", f"<{name}> occurs {len(blocks)} times with different contents")
        found[name] = texts.pop()
        spans += [(start, end, name) for start, end in blocks]
    spans.sort()
    for (_, end, outer), (start, _, inner) in pairwise(spans):
        if start < end:
            return MalformedReply("nested", f"<{inner}> is inside <{outer}>")
    return found


def _blocks(reply: str, name: str) -> list[tuple[int, int]] | MalformedReply:
    """The spans of the contents of a tag."""
    blocks: list[tuple[int, int]] = []
    start: int | None = None
    for tag in re.finditer(f"<(/?){name}>", reply):
        closing = tag[1] == "/"
        if closing and start is None:
            return MalformedReply("unclosed", f"</{name}> has no opening tag")
        if not closing and start is not None:
            return MalformedReply("unclosed", f"<{name}> is opened twice before it is closed")
        if start is None:
            start = tag.end()
        else:
            blocks.append((start, tag.start()))
            start = None
    return blocks if start is None else MalformedReply("unclosed", f"<{name}> is not closed")


class _DuplicateKey(ValueError):
    """A key of a JSON object is given twice with different values."""


def json_object(reply: str) -> dict[str, Any] | MalformedReply:
    """The only JSON object of a reply: the whole reply or its only ```json block.

    A key given twice with different values is contradictory; NaN and Infinity are not JSON.
    """
    fenced = _fenced(reply)
    if fenced is None:
        return MalformedReply("unclosed", "the JSON block is not closed")
    if len(fenced) > 1:
        return MalformedReply("contradictory", f"the reply contains {len(fenced)} JSON blocks")
    text = fenced[0] if fenced else reply
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except _DuplicateKey as error:
        return MalformedReply("contradictory", str(error))
    except (ValueError, RecursionError) as error:
        return MalformedReply("not_json", f"the reply is not one JSON object: {str(error)[:200]}")
    if not isinstance(value, dict):
        return MalformedReply("not_json", "the reply is JSON, but not an object")
    return value


def _fenced(reply: str) -> list[str] | None:
    """The contents of JSON blocks; None if the last one is not closed."""
    blocks: list[str] = []
    start: int | None = None
    for mark in _FENCE.finditer(reply):
        if start is None:
            start = mark.end() if mark[1] else None
        elif not mark[1]:
            blocks.append(reply[start : mark.start()])
            start = None
    return blocks if start is None else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        # In Python 1 == True == 1.0, but these are three different answers.
        if key in found and (type(found[key]), found[key]) != (type(value), value):
            raise _DuplicateKey(f"the key {key[:100]!r} is given twice with different values")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# --- prompts ----------------------------------------------------------------------------------------------

_ASK = {
    "en": {
        "tags": "Reply in exactly this form, with nothing else inside the tags:",
        "json": "Reply with one JSON object of exactly this form, and nothing else:",
        "plain": "Reply with the {what} alone, without any introduction or explanation.",
        "blank": "the {name}",
        "range": "an integer from {low} to {high}",
    },
    "zh": {
        "tags": "请严格按照以下格式回复，标签内不要有其他内容：",
        "json": "请只回复一个如下格式的 JSON 对象，不要有其他内容：",
        "plain": "请只回复{what}，不要有任何开场白或解释。",
        "blank": "{name} 的内容",
        "range": "{low} 到 {high} 之间的整数",
    },
}


def say(language: Language, key: str, **values: object) -> str:
    """One of the phrases with which a prompt describes a form."""
    return _ASK[language][key].format(**values)


def form_of(wanted: dict[str, str], form: Form, language: Language) -> str:
    """The form of a reply, for a prompt: an introductory line and a sample that describes each field's content."""
    if form == "plain":
        (what,) = wanted.values()
        return say(language, "plain", what=what)
    if form == "json":
        sample = json.dumps(wanted, ensure_ascii=False, indent=2)
    else:
        sample = "\n".join(f"<{name}>{what}</{name}>" for name, what in wanted.items())
    return f"{say(language, form)}\n{sample}"


def describe_fields(fields: Sequence[TextField], form: Form = "tags", language: Language = "en") -> str:
    """The requested form, for a prompt.

    Raises:
        ValueError: as `parse_fields`.
    """
    _names(fields, form)
    wanted = {field.name: field.description or say(language, "blank", name=field.name) for field in fields}
    return form_of(wanted, form, language)


def fields_schema(fields: Sequence[TextField]) -> dict[str, Any]:
    """The JSON schema (2020-12) of an object with these fields: all required, none empty, no others."""
    _names(fields, "json")
    properties: dict[str, Any] = {}
    for field in fields:
        properties[field.name] = {"type": "string"}
        properties[field.name] |= {"enum": list(field.choices)} if field.choices else {"minLength": 1}
        if field.description:
            properties[field.name]["description"] = field.description
    return object_schema(properties)


def object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object with exactly these properties, as servers with structured output accept it."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
