"""New prompts made from existing ones, each of the same task, more of them for reasoning tasks (TAPIR).

A new prompt is accepted as in `instruction_expansion`: complete, of a sensible length, new with respect to all others.
In addition, the judge must label it with the task of the prompt that it was made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from easydistill.config.base import NonEmptyStr, NonNegativeFloat, PositiveInt, PositiveShare, Share
from easydistill.contracts.operator import Ask, OperatorConfig, Steps
from easydistill.data.messages import images_of
from easydistill.data.records import Rejection, Sample, content_hash
from easydistill.synthesis.images import ImageNovelty, about, ask_about, without_tags
from easydistill.synthesis.operators import task_labelling
from easydistill.synthesis.operators.instruction_expansion import check_instruction
from easydistill.synthesis.operators.task_balancing import TASK, TASKS
from easydistill.synthesis.replies import Unusable, answered, field_of, rejection
from easydistill.synthesis.similarity import NEAR_DUPLICATE, TOO_SIMILAR
from easydistill.synthesis.text import prompt_text
from easydistill.synthesis.tools import Tools

PROMPT = "task_expansion"
REASONS = ("too_short", "too_long", "echo", "duplicate", "near_duplicate", "too_similar", "left_task")
EXPANDED_FROM, ROUND = "expanded_from", "round"
"""Keys of a new row's `meta`: id of the row it was made from, and the round."""
_MOST_SAMPLES = 1000
"""More than the new prompts per row and round: sample numbers of different rounds do not overlap."""


class TaskExpansionConfig(OperatorConfig):
    """How many new prompts, for which tasks, and which are rejected."""

    expansions: Annotated[NonNegativeFloat, Field(lt=100)] = 1.0
    """New prompts per hard row; with a fraction, that share of the rows gets one more."""
    reasoning_tasks: tuple[NonEmptyStr, ...] = ("Math", "Reasoning", "Code Generation", "Code Debug")
    """Tasks whose number of new prompts is multiplied by `reasoning_weight`."""
    reasoning_weight: Annotated[NonNegativeFloat, Field(le=10)] = 2.0
    """Factor on the new prompts of reasoning tasks."""
    labels: Annotated[tuple[NonEmptyStr, ...], Field(min_length=2)] = TASKS
    """The task labels. A row's own is in `task`; the judge labels rows that have none."""
    check_task: bool = True
    """Have new prompts labelled too, and reject those of another task."""
    min_tokens: PositiveInt = 4
    """Minimum length of a new prompt, in words (Chinese: characters)."""
    max_tokens: PositiveInt = 400
    """Maximum length of a new prompt, in words (Chinese: characters)."""
    near_duplicate: PositiveShare = NEAR_DUPLICATE
    """Texts are near duplicates from this share of common pieces of 5 characters on, of all pieces that they have
    (Jaccard similarity, estimated by MinHash)."""
    too_similar: Share = TOO_SIMILAR
    """A new prompt is too similar above this share of words that it has in the same order as another one (ROUGE-L
    F-measure)."""

    def count_of(self, row: Sample, tools: Tools) -> int:
        """Number of new prompts to make from a row."""
        weight = self.reasoning_weight if row.meta[TASK] in self.reasoning_tasks else 1.0
        whole, part = divmod(self.expansions * weight, 1)
        return int(whole) + (tools.random(PROMPT, row.id).random() < part)

    @property
    def labelling(self) -> task_labelling.Config:
        return task_labelling.Config(labels=self.labels, reply=self.reply)


@dataclass(frozen=True)
class Expansion:
    """A new prompt to be made."""

    source: Sample
    id: str
    index: int
    round: int

    @property
    def task(self) -> str:
        task: str = self.source.meta[TASK]
        return task


def with_tasks(config: TaskExpansionConfig, rows: Sequence[Sample], tools: Tools) -> Steps[list[Sample | Rejection]]:
    """The rows with their tasks in `meta["task"]`; the judge labels those that have none."""
    unlabelled = [row for row in rows if not isinstance(row.meta.get(TASK), str)]
    if not unlabelled:
        return list(rows)
    labelled = yield from task_labelling.run(config.labelling, unlabelled, tools)
    found: dict[str, Sample | Rejection] = {row.id: row for row in labelled.accepted}
    found.update((rejected.id, rejected) for rejected in labelled.rejected)
    return [found.get(row.id, row) for row in rows]


def expansions(
    stage: str, config: TaskExpansionConfig, rows: Sequence[Sample], tools: Tools, number: int
) -> list[Expansion]:
    """The prompts to make in round `number`, in the order of the rows' ids: of two similar new prompts, the same one
    comes first whatever the order of the rows."""
    return [
        Expansion(
            row,
            id=content_hash([stage, config.seed, number, row.id, turn])[:16],
            index=_MOST_SAMPLES * (number - 1) + turn,
            round=number,
        )
        for row in sorted(rows, key=lambda row: row.id)
        for turn in range(config.count_of(row, tools))
    ]


def expand(
    stage: str, config: TaskExpansionConfig, wanted: Expansion, novelty: ImageNovelty, tools: Tools
) -> Steps[Sample | Rejection]:
    """Request a new prompt of the source's task, about the same images if it has some, and the teacher's answer."""
    source = wanted.source
    shown = images_of(*source.prompt)
    text = prompt_text(source)
    replies = yield [
        ask_about(tools, PROMPT, source, ("instruction",), index=wanted.index, instruction=text, task=wanted.task)
    ]
    try:
        prompt = field_of(replies[0], "instruction", config.reply)
        prompt = without_tags(prompt) if shown else prompt
        check_instruction(prompt, config.min_tokens, config.max_tokens)
        near = novelty.offer(wanted.id, shown, prompt)
        if near is not None:
            raise Unusable(near.reason, near.detail)
        row = _row(stage, wanted, prompt)
        # The judge knows only the labels, so it cannot recognise a task that is not among them.
        if config.check_task and wanted.task in config.labels:
            labelled = yield from task_labelling.run(config.labelling, [row], tools)
            if labelled.rejected:
                return replace(labelled.rejected[0], stage=stage)
            found = labelled.accepted[0].meta[TASK]
            if found != wanted.task:
                raise Unusable("left_task", f"its task is {found}, its source's is {wanted.task}")
        replies = yield [Ask.of(row)]
        return answered(row, replies[0])
    except Unusable as problem:
        return rejection(wanted.id, stage, problem, *replies)


def _row(stage: str, wanted: Expansion, prompt: str) -> Sample:
    system = [message for message in wanted.source.prompt if message["role"] == "system"]
    meta = {"operator": stage, TASK: wanted.task, EXPANDED_FROM: wanted.source.id, ROUND: wanted.round}
    return Sample(wanted.id, (*system, about(images_of(*wanted.source.prompt), prompt)), meta)
