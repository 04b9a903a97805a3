"""Rewrites answers in the style that suits their task: a chain of thought, or commented code (TAPIR)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from easydistill.contracts.operator import Ask, Reply, Steps
from easydistill.data.messages import Message, text_of
from easydistill.data.records import Rejection, Sample
from easydistill.synthesis.chains import known_answer, unchanged
from easydistill.synthesis.images import ask_about
from easydistill.synthesis.replies import Unusable, field_of, rejection
from easydistill.synthesis.text import prompt_text
from easydistill.synthesis.tools import Tools
from easydistill.verification.answers import find_answer
from easydistill.verification.fields import Form

PROMPT = "answer_style"
REASONS = ("code_lost", "no_final_answer", "undecided", "answer_changed")
STYLE = "style"
"""Key of a row's `meta` with the style of its answer."""
Style = Literal["cot", "commented_code"]
FENCE = "```"
_WITH_FINAL_ANSWER = frozenset({"Math"})
"""Tasks whose answers have a final answer to compare."""


@dataclass(frozen=True)
class _Rewriting:
    """A rewritten answer, and the (known, found) final answers if there are both."""

    text: str
    pair: tuple[str, str] | None


def restyle(
    stage: str, styles: Mapping[str, Style], form: Form, rows: Sequence[Sample], tools: Tools
) -> Steps[list[Sample | Rejection]]:
    """Rewrite the answers of rows whose task, in `meta["task"]`, has a style; other rows stay as they are.

    A rewriting that loses the code, or whose final answer differs from the row's known one, is rejected.

    Returns:
        A row or a rejection for each of `rows`, in their order.
    """
    todo = [(row, styles[row.meta["task"]]) for row in rows if _wanted(row, styles)]
    if not todo:
        return list(rows)
    replies = yield [_question(row, style, tools) for row, style in todo]
    made = [_read(row, style, reply, form) for (row, style), reply in zip(todo, replies, strict=True)]
    found: dict[str, Sample | Rejection] = {}
    for (row, style), reply, item in zip(todo, replies, unchanged(made), strict=True):
        if isinstance(item, Unusable):
            found[row.id] = rejection(row.id, stage, item, reply)
        else:
            last: Message = {**row.messages[-1], "content": item.text}
            found[row.id] = replace(row, messages=(*row.messages[:-1], last), meta={**row.meta, STYLE: style})
    return [found.get(row.id, row) for row in rows]


def _wanted(row: Sample, styles: Mapping[str, Style]) -> bool:
    style = styles.get(row.meta["task"])
    # The answer of a row that calls tools is not prose to be put in a style.
    return style is not None and row.meta.get(STYLE) != style and "tool_calls" not in row.messages[-1]


def _question(row: Sample, style: Style, tools: Tools) -> Ask:
    return ask_about(
        tools,
        PROMPT,
        row,
        wants=("rewritten_answer",),
        instruction=prompt_text(row),
        answer=text_of(row.messages[-1]),
        style=style,
        boxed=row.meta["task"] in _WITH_FINAL_ANSWER,
    )


def _read(row: Sample, style: Style, reply: Reply, form: Form) -> _Rewriting | Unusable:
    try:
        text = field_of(reply, "rewritten_answer", form)
        if style == "commented_code" and FENCE in text_of(row.messages[-1]) and FENCE not in text:
            raise Unusable("code_lost", "the answer had a code block, its rewriting has none")
        known = known_answer(row, of_rewriting=True) if row.meta["task"] in _WITH_FINAL_ANSWER else None
        if known is None:
            return _Rewriting(text, None)
        found = find_answer(text)
        if found is None:
            raise Unusable("no_final_answer", f"the rewriting does not say the final answer, {known!r}")
    except Unusable as problem:
        return problem
    return _Rewriting(text, (known, found.text))
