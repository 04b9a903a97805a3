"""Chains of thought made shorter or longer, with the same final answer: what both operators share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from easydistill.config.base import PositiveFloat
from easydistill.contracts.operator import Ask, OperatorConfig, Reply, Result, Steps, UnfitRows
from easydistill.data.records import Rejection, Sample
from easydistill.synthesis.chains import changed_answer, known_answer, length_of, thought_of, verify, with_thought
from easydistill.synthesis.replies import Unusable, field_of, gather, rejection
from easydistill.synthesis.text import prompt_text
from easydistill.synthesis.tools import Tools
from easydistill.verification.answers import DEFAULT_STRATEGIES, Strategy, find_answer

REASONS = (
    *("truncated", "malformed_reply", "answer_unknown", "unfit_length", "no_final_answer"),
    *("undecided", "answer_changed"),
)

Limit = Literal["at_most", "at_least"]
"""Which limit the ratio of lengths is."""


class RewritingConfig(OperatorConfig):
    """What a rewritten chain of thought must keep."""

    ratio: PositiveFloat
    """Length of the new chain over that of the old, in words: the limit."""
    require_answer: bool = True
    """Refuse rows whose final answer is not known, for nothing can be checked there."""
    boxed: bool = True
    """Ask for the final answer in \\boxed{}."""
    strategies: tuple[Strategy, ...] = DEFAULT_STRATEGIES
    """Where final answers are looked for, in this order."""


def rewrite(
    stage: str,
    config: RewritingConfig,
    rows: Sequence[Sample],
    tools: Tools,
    limit: Limit,
) -> Steps[Result]:
    """Rewrite every row's chain; accepted rows hold their own problem with the new chain.

    Raises:
        UnfitRows: a row has no chain of thought.
    """
    bare = next((row.id for row in rows if row.answer is None), None)
    if bare is not None:
        raise UnfitRows(f"row {bare} has no answer whose reasoning could be rewritten; run cot_generation first")
    known = [known_answer(row, config.strategies, of_rewriting=True) for row in rows]
    replies = yield [rewriting(stage, config, row, tools) for row in rows]
    made = [read(config, row, answer, reply, limit) for row, answer, reply in zip(rows, known, replies, strict=True)]
    verdicts = verify([new.pair if isinstance(new, Rewritten) else None for new in made])
    found: list[Sample | Rejection] = []
    for row, reply, new, verdict in zip(rows, replies, made, verdicts, strict=True):
        problem = new if isinstance(new, Unusable) else changed_answer(new.pair, verdict)
        if problem is not None:
            found.append(rejection(row.id, stage, problem, reply))
        else:
            assert isinstance(new, Rewritten)
            changed = with_thought(row, new.thought)
            meta = {**row.meta, "operator": stage, "length_ratio": round(new.ratio, 4)}
            found.append(Sample(row.id, changed.messages, meta))
    result = gather(found)
    ratios = sorted(new.ratio for new in made if isinstance(new, Rewritten))
    result.facts = {
        "answers_known": sum(answer is not None for answer in known),
        "median_length_ratio": round(ratios[len(ratios) // 2], 4) if ratios else None,
    }
    return result


class Rewritten:
    """A chain that fits so far, and the answers to be compared."""

    def __init__(self, thought: str, ratio: float, known: str, found: str | None) -> None:
        self.thought, self.ratio = thought, ratio
        self.pair = (known, found) if found else None


def rewriting(stage: str, config: RewritingConfig, row: Sample, tools: Tools, index: int = 0) -> Ask:
    """Asks for another chain of a row. `stage` names the prompt, `index` the sample where one is asked for again."""
    text, thought = prompt_text(row), thought_of(row)
    return tools.ask(
        stage, text, wants=("thought",), index=index, instruction=text, thought=thought, boxed=config.boxed
    )


def read(config: RewritingConfig, row: Sample, known: str | None, reply: Reply, limit: Limit) -> Rewritten | Unusable:
    """The chain of a reply, but for whether its answer is right."""
    try:
        thought = field_of(reply, "thought", config.reply)
        if known is None and config.require_answer:
            raise Unusable("answer_unknown", "the old chain has no final answer to check the new one against")
        ratio = length_of(thought) / max(1, length_of(thought_of(row)))
        if ratio > config.ratio if limit == "at_most" else ratio < config.ratio:
            words = limit.replace("_", " ")
            raise Unusable("unfit_length", f"{ratio:.2f} of the old length, {words} {config.ratio} is wanted")
        # A separate thought may end without the answer, which stands in the reply beside it: its last number is none.
        separate = bool(row.messages[-1].get("reasoning_content"))
        found = find_answer(thought, [name for name in config.strategies if not separate or name != "last_number"])
        if known is not None and found is None and not separate:
            raise Unusable("no_final_answer", "the new chain has no final answer")
    except Unusable as problem:
        return problem
    return Rewritten(thought, ratio, known or "", found.text if found is not None and known is not None else None)
