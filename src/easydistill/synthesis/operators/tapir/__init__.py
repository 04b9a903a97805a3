"""A round of a task-aware curriculum (TAPIR, arXiv 2405.13448): rows that are hard for the student, and more like them.

    hard     rows whose gap J(teacher) − J(student) is at least δ; see `synthesis.difficulty`
    new      prompts that the teacher makes from hard ones, each of the same task, more for reasoning tasks
    styled   answers of hard and new rows, rewritten in the style of their task; see `styles`
    mix      hard and new rows, and as many others as make the former a share of α_r = α + step·(r − 1), r from 1

The first round's share is α. All H hard and new rows are taken, with ⌊H·(1 − α_r)/α_r⌋ others or as many as there are,
so the share is never below α_r. If no row is hard any more, the round consists of the others. Draws depend on seed and
row id alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar

from pydantic import model_validator

from easydistill.config.base import NonEmptyStr, NonNegativeFloat, PositiveInt, PositiveShare, Share, Unfit
from easydistill.contracts.operator import Result, Steps, each
from easydistill.data.records import Rejection, Sample, draw_key
from easydistill.synthesis import difficulty as _difficulty
from easydistill.synthesis.difficulty import gap_facts, judge_row
from easydistill.synthesis.images import ImageNovelty
from easydistill.synthesis.operators import task_labelling
from easydistill.synthesis.operators.tapir import styles as _styles
from easydistill.synthesis.operators.tapir import task_expansion as _task_expansion
from easydistill.synthesis.operators.tapir.styles import Style, restyle
from easydistill.synthesis.operators.tapir.task_expansion import (
    Expansion,
    TaskExpansionConfig,
    expand,
    expansions,
    with_tasks,
)
from easydistill.synthesis.operators.task_balancing import TASK
from easydistill.synthesis.tools import Tools

STAGE = "tapir"
PROMPTS = (_difficulty.PROMPT, *task_labelling.PROMPTS, _task_expansion.PROMPT, _styles.PROMPT)
REASONS = (
    *("truncated", "malformed_score", "malformed_reply", "unknown_label"),
    *_task_expansion.REASONS,
    *_styles.REASONS,
    "not_drawn",
)
LABELLED = None
MAKES_PROMPTS = False
SHOWS_IMAGES = ("teacher", "judge", "student")


class Config(TaskExpansionConfig):
    """Which rows are hard, their share of a round, and the style of their answers."""

    identity_name = "operator.tapir"

    runtime_only: ClassVar[frozenset[str]] = frozenset({"rounds"})

    rounds: PositiveInt = 3
    """Number of rounds, in each of which the student is examined and then trained on the hard rows."""
    delta: NonNegativeFloat = 2.0
    """δ: a row is hard if the judge gives the teacher's answer at least so many points (of 1 to 10) more than the
    student's."""
    alpha: PositiveShare = 0.3
    """Share of hard and new rows in the first round's mix."""
    alpha_step: Share = 0.2
    """Increase of that share per round, up to 1."""
    styles: dict[NonEmptyStr, Style] = {  # noqa: RUF012 (pydantic copies it)
        "Math": "cot",
        "Reasoning": "cot",
        "Code Generation": "commented_code",
        "Code Debug": "commented_code",
    }
    """How the answers of a task are written: `cot` (step by step) or `commented_code`. Others stay as they are."""

    @model_validator(mode="after")
    def _names_tasks(self) -> Config:
        for name in sorted({"reasoning_tasks", "styles"} & self.model_fields_set):
            unknown = sorted(set(getattr(self, name)) - set(self.labels))
            if unknown:
                raise Unfit(f"{name} names {unknown[0]!r}, which is no label", f"use one of {', '.join(self.labels)}")
        return self

    def share_of(self, number: int) -> Fraction:
        """α_r of round `number`, counted from 1, as an exact fraction: ⌊7·0.7/0.3⌋ is 16."""
        return min(Fraction(1), Fraction(str(self.alpha)) + Fraction(str(self.alpha_step)) * (number - 1))


def run(
    config: Config, rows: Sequence[Sample], tools: Tools, number: int = 1, known: Sequence[Sample] = ()
) -> Steps[Result]:
    """Examine the student on `rows` and make the round's mix.

    Args:
        rows: rows with or without the teacher's answers.
        number: number of the round, from 1.
        known: further rows that new prompts must not resemble, such as held-out ones.
    """
    result = Result(entered=len(rows))
    judged = _kept(result, (yield from each(rows, lambda row: judge_row(STAGE, config, row, tools))))
    hard = [item.scored_row for item in judged if item.gap >= config.delta]
    rest = [item.scored_row for item in judged if item.gap < config.delta]
    found_hard = len(hard)
    hard = _kept(result, (yield from with_tasks(config, hard, tools)))
    wanted = expansions(STAGE, config, hard, tools, number)
    result.entered += len(wanted)
    novelty = _pool(config, [*rows, *known])
    new = _kept(result, (yield from each(wanted, lambda item: expand(STAGE, config, item, novelty, tools))))
    styled = _kept(result, (yield from restyle(STAGE, config.styles, config.reply, [*hard, *new], tools)))
    share = config.share_of(number)
    drawn = draw(rest, others(len(styled), share) if found_hard else len(rest), config.seed)
    result.accepted = [*styled, *drawn]
    result.rejected.extend(_not_drawn(rest, drawn))
    by_task = _by_task(hard, wanted, styled)
    new_rows = by_task["new"].total()
    result.facts = {
        "round": number,
        "gap": gap_facts(judged),
        "hard": found_hard,
        "tasks": {task: {name: found[task] for name, found in by_task.items()} for task in sorted(by_task["hard"])},
        "alpha": float(share),
        "mix": {
            "hard": len(styled) - new_rows,
            "new": new_rows,
            "rest": len(drawn),
            "share": round(len(styled) / max(1, len(result.accepted)), 4),
        },
    }
    return result


def _by_task(hard: Sequence[Sample], wanted: Sequence[Expansion], styled: Sequence[Sample]) -> dict[str, Counter[str]]:
    """How many rows of each task were hard, were asked for and were made."""
    made_now = {item.id for item in wanted}
    return {
        "hard": Counter(row.meta[TASK] for row in hard),
        "asked": Counter(item.task for item in wanted),
        "new": Counter(row.meta[TASK] for row in styled if row.id in made_now),
    }


def _kept(result: Result, found: Sequence[Any]) -> list[Any]:
    """The items that are no rejections; rejections are added to the result."""
    result.rejected.extend(item for item in found if isinstance(item, Rejection))
    return [item for item in found if not isinstance(item, Rejection)]


def _pool(config: Config, rows: Sequence[Sample]) -> ImageNovelty:
    novelty = ImageNovelty(config.near_duplicate, config.too_similar)
    for row in rows:
        novelty.add(row)
    return novelty


# --- the mix ------------------------------------------------------------------------------------------------------


def others(hard: int, share: Fraction) -> int:
    """How many other rows to mix with `hard` hard ones, so that these are the given share of the whole."""
    return int(hard * (1 - share) / share)


def draw(rows: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """At most `count` of the rows, by hash of seed and id, in the rows' order."""
    by_hash = sorted(rows, key=lambda row: draw_key(seed, row.id))
    taken = {row.id for row in by_hash[:count]}
    return [row for row in rows if row.id in taken]


def _not_drawn(rest: Sequence[Sample], drawn: Sequence[Sample]) -> list[Rejection]:
    taken = {row.id for row in drawn}
    detail = f"{len(drawn)} of {len(rest)} rows that are not hard are taken"
    return [Rejection(row.id, STAGE, "not_drawn", detail, 1, list(row.messages)) for row in rest if row.id not in taken]
