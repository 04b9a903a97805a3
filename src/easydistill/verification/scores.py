"""Scores in a judge's reply, parsed strictly.

Input: a reply, the expected scores with their ranges, and the form in which they were requested. Output: an integer in
range for each, or a `MalformedReply` with the reason. Never −1 and never "the first integer in the text": a reply that
does not parse is a rejected row, because an invented score would affect the selection as if it were a judgement.

- `tags`: `<score>7</score>`, with only ASCII digits and white space inside. The tag may occur several times with the
  same score. Anything that resembles the tag but is spelled differently is malformed.
- `json`: one object (see `fields.json_object`) whose values are integers: not 7.0, not "7", not true.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from easydistill.verification.fields import (
    Language,
    MalformedReply,
    check_name,
    form_of,
    json_object,
    object_schema,
    say,
)

ScoreForm = Literal["tags", "json"]
_PLAIN_INTEGER = re.compile(r"0|[1-9][0-9]{0,8}")
_WHITE = " \t\r\n"


@dataclass(frozen=True)
class ScoreField:
    """An integer from `low` to `high`, both included, that a judge must give."""

    name: str = "score"
    low: int = 0
    high: int = 9
    description: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)
        if not 0 <= self.low < self.high:
            raise ValueError(f"the range of {self.name}, {self.low} to {self.high}, must have 0 <= low < high")


def parse_scores(reply: str, fields: Sequence[ScoreField], form: ScoreForm = "tags") -> dict[str, int] | MalformedReply:
    """Read the scores of a reply, in the order of the fields.

    Raises:
        ValueError: there are no fields, or two have the same name.
    """
    _check(fields)
    scores: dict[str, int] = {}
    value = json_object(reply) if form == "json" else None
    if isinstance(value, MalformedReply):
        return value
    for field in fields:
        score = _from_tags(reply, field) if value is None else _from_json(value, field)
        if isinstance(score, MalformedReply):
            return score
        if not field.low <= score <= field.high:
            return MalformedReply("out_of_range", f"`{field.name}` is {score}, not from {field.low} to {field.high}")
        scores[field.name] = score
    return scores


def _from_json(value: dict[str, Any], field: ScoreField) -> int | MalformedReply:
    if field.name not in value:
        return MalformedReply("missing", f"the object has no `{field.name}`")
    score = value[field.name]
    # bool is a subclass of int.
    if type(score) is not int:
        return MalformedReply(
            "not_an_integer", f"`{field.name}` is {str(score)[:50]!r}, of type {type(score).__name__}"
        )
    return score


def _from_tags(reply: str, field: ScoreField) -> int | MalformedReply:
    name, opening = field.name, f"<{field.name}>"
    scores: set[int] = set()
    start: int | None = None
    for tag in re.finditer(rf"<\s*+(?:/\s*+)?{name}(?![A-Za-z0-9_-])[^<>]*>?", reply, re.IGNORECASE):
        if tag[0] == opening and start is None:
            start = tag.end()
        elif tag[0] == f"</{name}>" and start is not None:
            score = _integer(reply[start : tag.start()], name)
            if isinstance(score, MalformedReply):
                return score
            scores.add(score)
            start = None
        elif tag[0] in (opening, f"</{name}>"):
            return MalformedReply("unclosed", f"{tag[0]} has no matching tag")
        else:
            return MalformedReply("bad_tag", f"{tag[0][:50]!r} is a misspelled {opening}")
    if start is not None:
        return MalformedReply("unclosed", f"{opening} is not closed")
    if not scores:
        return MalformedReply("missing", f"there is no {opening}")
    if len(scores) > 1:
        return MalformedReply("contradictory", f"{opening} is given as {' and '.join(map(str, sorted(scores)))}")
    return scores.pop()


def _integer(text: str, name: str) -> int | MalformedReply:
    content = text.strip(_WHITE)
    if not content:
        return MalformedReply("empty", f"<{name}> is empty")
    if not _PLAIN_INTEGER.fullmatch(content):
        return MalformedReply("not_an_integer", f"<{name}> contains {content[:50]!r}, not one plain integer")
    return int(content)


def describe_scores(fields: Sequence[ScoreField], form: ScoreForm = "tags", language: Language = "en") -> str:
    """The requested form, for a prompt."""
    _check(fields)
    wanted = {}
    for field in fields:
        span = say(language, "range", low=field.low, high=field.high)
        wanted[field.name] = f"{field.description}: {span}" if field.description else span
    return form_of(wanted, form, language)


def scores_schema(fields: Sequence[ScoreField]) -> dict[str, Any]:
    """The JSON schema (2020-12) of an object with these scores: all required, no others."""
    _check(fields)
    properties: dict[str, Any] = {}
    for field in fields:
        properties[field.name] = {"type": "integer", "minimum": field.low, "maximum": field.high}
        if field.description:
            properties[field.name]["description"] = field.description
    return object_schema(properties)


def _check(fields: Sequence[ScoreField]) -> None:
    names = [field.name for field in fields]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"scores need distinct names, not {names}")
