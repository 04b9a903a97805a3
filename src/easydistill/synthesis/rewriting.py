"""Rewriting chains of thought to be shorter or longer with the same final answer, as both operators do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median_high
from typing import Literal

from easydistill.config.base import PositiveFloat
from easydistill.contracts.operator import Ask, OperatorConfig, Reply, Result, Steps, UnfitRows
from easydistill.data.messages import said
from easydistill.data.records import Rejection, Sample
from easydistill.synthesis.chains import known_answer, length_of, thought_of, unchanged, with_thought
from easydistill.synthesis.images import ask_about
from easydistill.synthesis.replies import Unusable, field_of, gather, rejection
from easydistill.synthesis.text import prompt_text
from easydistill.synthesis.tools import Tools
from easydistill.verification.answers import DEFAULT_STRATEGIES, Strategy, find_answer

REASONS = (
    *("no_chain", "truncated", "malformed_reply", "answer_unknown", "unfit_length", "no_final_answer"),
    *("undecided", "answer_changed"),
)

Limit = Literal["at_most", "at_least"]
"""Whether the length ratio is an upper or a lower limit."""


class RewritingConfig(OperatorConfig):
    """Requirements on a rewritten chain of thought."""

    ratio: PositiveFloat
    """Limit on the new chain's length in words, as a multiple of the old one's."""
    require_answer: bool = True
    """Reject rows whose final answer is unknown, since the new chain cannot be checked."""
    boxed: bool = True
    """Ask for the final answer in \\boxed{}."""
    strategies: tuple[Strategy, ...] = DEFAULT_STRATEGIES
    """Where to look for final answers, in this order."""


def rewrite(
    stage: str,
    config: RewritingConfig,
    rows: Sequence[Sample],
    tools: Tools,
    limit: Limit,
) -> Steps[Result]:
    """Rewrite every row's chain; accepted rows have their own prompt with the new chain.

    Raises:
        UnfitRows: a row has no chain of thought.
    """
    rows, found = _divided(stage, rows)
    known = [known_answer(row, config.strategies, of_rewriting=True) for row in rows]
    replies = yield [rewriting(stage, config, row, tools) for row in rows]
    made = [read(config, row, answer, reply, limit) for row, answer, reply in zip(rows, known, replies, strict=True)]
    found += [_outcome(stage, *item) for item in zip(rows, replies, unchanged(made), strict=True)]
    result = gather(found)
    ratios = [new.ratio for new in made if isinstance(new, Rewritten)]
    result.facts = {
        "answers_known": len(known) - known.count(None),
        "median_length_ratio": round(median_high(ratios), 4) if ratios else None,
    }
    return result


@dataclass(frozen=True)
class Rewritten:
    """A chain that passed every check but the comparison of its final answer."""

    thought: str
    ratio: float
    """Its length, as a multiple of the old chain's."""
    pair: tuple[str, str] | None
    """The (known, found) final answers, if there are both."""


def _divided(stage: str, rows: Sequence[Sample]) -> tuple[list[Sample], list[Sample | Rejection]]:
    """The rows with a chain of thought, and the rejections of the others; raises as `rewrite` does."""
    bare = next((row.id for row in rows if row.answer is None), None)
    if bare is not None:
        raise UnfitRows(f"row {bare} has no answer to rewrite; run cot_generation first")
    rejected: list[Sample | Rejection] = [_without_chain(stage, row) for row in rows if not thought_of(row).strip()]
    return [row for row in rows if thought_of(row).strip()], rejected


def _outcome(stage: str, row: Sample, reply: Reply, new: Rewritten | Unusable) -> Sample | Rejection:
    if isinstance(new, Unusable):
        return rejection(row.id, stage, new, reply)
    meta = {**row.meta, "operator": stage, "length_ratio": round(new.ratio, 4)}
    return replace(with_thought(row, new.thought), id=row.id, meta=meta)


def _without_chain(stage: str, row: Sample) -> Rejection:
    detail = "the answer only calls tools: it has no chain of thought to rewrite"
    return Rejection(row.id, stage, "no_chain", detail, 1, said(row.messages[-1]))


def rewriting(stage: str, config: RewritingConfig, row: Sample, tools: Tools, index: int = 0) -> Ask:
    """The request to rewrite a row's chain.

    Args:
        stage: name of the prompt.
        index: sample number, if the same rewriting is requested again.
    """
    text, thought = prompt_text(row), thought_of(row)
    return ask_about(
        tools, stage, row, wants=("thought",), index=index, instruction=text, thought=thought, boxed=config.boxed
    )


def read(config: RewritingConfig, row: Sample, known: str | None, reply: Reply, limit: Limit) -> Rewritten | Unusable:
    """The chain of a reply, with everything checked but whether its final answer is right."""
    try:
        thought = field_of(reply, "thought", config.reply)
        if known is None and config.require_answer:
            raise Unusable("answer_unknown", "the old chain has no final answer to check the new one against")
        ratio = length_of(thought) / max(1, length_of(thought_of(row)))
        if ratio > config.ratio if limit == "at_most" else ratio < config.ratio:
            words = limit.replace("_", " ")
            raise Unusable("unfit_length", f"{ratio:.2f} of the old length; it must be {words} {config.ratio}")
        return Rewritten(thought, ratio, None if known is None else _final_answers(config, row, known, thought))
    except Unusable as problem:
        return problem


def _final_answers(config: RewritingConfig, row: Sample, known: str, thought: str) -> tuple[str, str] | None:
    """The known final answer and that of the new chain, to be compared.

    A separate thought may end without the final answer, which is in the message's content: `last_number` would take
    some other number.

    Raises:
        Unusable: the new chain lacks a final answer, and nothing else would hold it.
    """
    separate = bool(row.messages[-1].get("reasoning_content"))
    found = find_answer(thought, [name for name in config.strategies if not separate or name != "last_number"])
    if found is None and not separate:
        raise Unusable("no_final_answer", "the new chain has no final answer")
    return None if found is None or not found.text else (known, found.text)
