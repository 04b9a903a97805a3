"""Labels every instruction with one of 32 tasks, for balancing (paper, 2.1.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from easydistill.config.base import NonEmptyStr
from easydistill.contracts.operator import Ask, OperatorConfig, Reply, Result, Steps
from easydistill.data.records import Rejection, Sample
from easydistill.synthesis.images import ask_about
from easydistill.synthesis.operators.task_balancing import TASKS
from easydistill.synthesis.replies import Unusable, field_of, gather, rejection
from easydistill.synthesis.text import prompt_text
from easydistill.synthesis.tools import Tools

STAGE = "task_labelling"
SUMMARY = "Every instruction gets one of the task labels."
PROMPTS = (STAGE,)
REASONS = ("truncated", "malformed_reply", "unknown_label")
LABELLED = None
MAKES_PROMPTS = False
SHOWS_IMAGES = ("judge",)


class Config(OperatorConfig):
    """The task labels."""

    identity_name = "operator.task_labelling"

    labels: Annotated[tuple[NonEmptyStr, ...], Field(min_length=2)] = TASKS
    """The labels; a reply must be one of them, ignoring case."""


def run(config: Config, rows: Sequence[Sample], tools: Tools) -> Steps[Result]:
    """Label each row, in `meta["task"]`."""

    def ask(row: Sample) -> Ask:
        labels = config.labels
        return ask_about(
            tools, STAGE, row, ("label",), role="judge", choices=labels, instruction=prompt_text(row), labels=labels
        )

    replies = yield [ask(row) for row in rows]
    result = gather(_labelled(config, row, reply) for row, reply in zip(rows, replies, strict=True))
    result.facts = {"tasks": dict(Counter(row.meta["task"] for row in result.accepted).most_common())}
    return result


def _labelled(config: Config, row: Sample, reply: Reply) -> Sample | Rejection:
    by_name = {label.casefold(): label for label in config.labels}
    try:
        text = field_of(reply, "label", config.reply)
        label = by_name.get(text.strip(" .\"'`*").casefold())
        if label is None:
            raise Unusable("unknown_label", f"{text[:80]!r} is not one of the {len(by_name)} labels")
    except Unusable as problem:
        return rejection(row.id, STAGE, problem, reply)
    return replace(row, meta={**row.meta, "task": label})
