"""Reads texts, fields and scores from replies; a reply that cannot be used raises `Unusable` with a reason code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from easydistill.contracts.operator import Reply, Result
from easydistill.data.messages import Message, answer_message
from easydistill.data.records import Rejection, Sample, marked
from easydistill.verification.fields import (
    Form,
    Language,
    MalformedReply,
    TextField,
    describe_fields,
    fields_schema,
    parse_fields,
    say,
)
from easydistill.verification.scores import ScoreField, ScoreForm, describe_scores, parse_scores, scores_schema

MALFORMED_REPLY = "malformed_reply"
MALFORMED_SCORE = "malformed_score"
Scores = Mapping[str, tuple[int, int]]
"""Names of scores with their smallest and largest value."""


class Unusable(Exception):
    """Why a reply, or a row made from it, is rejected."""

    def __init__(self, reason: str, detail: str, *replies: Reply) -> None:
        """`replies` are those that caused it, by their form or content; none if the row itself is the cause."""
        self.reason, self.detail, self.replies = reason, detail, replies
        super().__init__(f"{reason}: {detail}")


def text_of(reply: Reply) -> str:
    """The text of a complete reply.

    Raises:
        Unusable: there is no text, or it was truncated.
    """
    if reply.problem is not None:
        raise Unusable(*reply.problem, reply)
    assert reply.text is not None
    if reply.finish_reason == "length":
        raise Unusable("truncated", "the reply was cut off at max_new_tokens", reply)
    return reply.text.strip()


def answered(row: Sample, reply: Reply) -> Sample:
    """The row with a complete reply as its answer; raises as `text_of`."""
    return marked(replace(row, messages=(*row.prompt, message_of(reply))), cut=False)


def message_of(reply: Reply) -> Message:
    """A complete reply as a message, with its reasoning and calls; raises as `text_of`."""
    return answer_message(text_of(reply), reply.reasoning, reply.tool_calls)


def field_of(reply: Reply, name: str, form: Form) -> str:
    """The only field of a reply.

    Raises:
        Unusable: the reply is incomplete, or not in the form asked for.
    """
    return fields_of(reply, (name,), form)[name]


def fields_of(reply: Reply, names: Sequence[str], form: Form) -> dict[str, str]:
    """The fields of a reply; raises as `field_of`, and if a field only repeats its own placeholder."""
    found = parse_fields(text_of(reply), [TextField(name) for name in names], form)
    if isinstance(found, MalformedReply):
        raise Unusable(MALFORMED_REPLY, f"{found.reason}: {found.detail}", reply)
    for name, text in found.items():
        if text.strip(" .。\"'").casefold() in _blanks(name):
            raise Unusable(MALFORMED_REPLY, f"`{name}` only repeats the placeholder {text!r}", reply)
    return found


def _blanks(name: str) -> set[str]:
    """The placeholders of a field in the form that prompts show."""
    languages: tuple[Language, ...] = ("en", "zh")
    return {name} | {(_NAMES[each].get(name) or say(each, "blank", name=name)).casefold() for each in languages}


def scores_of(reply: Reply, scores: Scores, form: Form) -> dict[str, int]:
    """The scores of a reply; raises as `field_of`. With form `plain` they are JSON: a number in prose is no score."""
    found = parse_scores(text_of(reply), _score_fields(scores), _score_form(form))
    if isinstance(found, MalformedReply):
        raise Unusable(MALFORMED_SCORE, f"{found.reason}: {found.detail}", reply)
    return found


def form_words(wants: Sequence[str] | Scores, form: Form, language: Language) -> str:
    """The instructions in a prompt on how to give fields or scores."""
    if isinstance(wants, Mapping):
        return describe_scores(_score_fields(wants), _score_form(form), language)
    return describe_fields([TextField(name, _NAMES[language].get(name, "")) for name in wants], form, language)


def schema_of(wants: Sequence[str] | Scores, choices: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON schema of a reply with these fields or scores; `choices`, if any, are the values a field may take."""
    if isinstance(wants, Mapping):
        return scores_schema(_score_fields(wants))
    return fields_schema([TextField(name, choices=tuple(choices)) for name in wants])


def _score_fields(scores: Scores) -> list[ScoreField]:
    return [ScoreField(name, low, high) for name, (low, high) in scores.items()]


def _score_form(form: Form) -> ScoreForm:
    return "tags" if form == "tags" else "json"


_NAMES: dict[Language, dict[str, str]] = {
    "en": {"instruction": "new instruction", "thought": "rewritten solution"},
    "zh": {"instruction": "新指令", "thought": "改写后的解答", "label": "标签"},
}
"""Names of fields in prompts, where they differ from the keys."""


def rejection(identity: str, stage: str, problem: Unusable, *replies: Reply) -> Rejection:
    """The rejection of a row, with the replies received for it."""
    raw = [reply.raw if reply.raw is not None else reply.text for reply in replies]
    keys = tuple(reply.key for reply in problem.replies or replies if reply.key is not None)
    return Rejection(identity, stage, problem.reason, problem.detail, 1, raw[0] if len(raw) == 1 else raw, keys)


def gather(rows: Iterable[Sample | Rejection]) -> Result:
    """A result of these accepted and rejected rows."""
    result = Result()
    for row in rows:
        result.entered += 1
        if isinstance(row, Rejection):
            result.rejected.append(row)
        else:
            result.accepted.append(row)
    return result
