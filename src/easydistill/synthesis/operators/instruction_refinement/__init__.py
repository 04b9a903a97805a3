"""Rewrites instructions to be clearer and more specific, with the same intent (paper, 2.1.1).

The row keeps its id. With `veto`, a judge compares both instructions, and a rewriting that asks for something else is
rejected. Both are shown the images of a row; the rewritten row keeps them, where the rewriting has places for them or
else before its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from easydistill.config.base import PositiveFloat
from easydistill.contracts.operator import OperatorConfig, Result, Steps, each
from easydistill.data.messages import images_of
from easydistill.data.messages import text_of as said_of
from easydistill.data.records import Rejection, Sample
from easydistill.data.rouge import rouge_l
from easydistill.synthesis.images import PLACES_LOST, ask_about, reworded, without_tags, words_of
from easydistill.synthesis.replies import Unusable, field_of, gather, rejection, scores_of
from easydistill.synthesis.text import normalise, prompt_text, tokens
from easydistill.synthesis.tools import Tools

STAGE = "instruction_refinement"
SUMMARY = "Every instruction rewritten, clearer and more specific."
PROMPTS = ("instruction_refinement", "same_intent")
REASONS = (
    *("truncated", "malformed_reply", "unchanged", "too_long", "numbers_lost", PLACES_LOST, "malformed_score", "drift"),
)
LABELLED = False
MAKES_PROMPTS = True
SHOWS_IMAGES = ("teacher", "judge")
SAME = {"same": (0, 1)}


class Config(OperatorConfig):
    """Requirements on a rewritten instruction."""

    identity_name = "operator.instruction_refinement"

    veto: bool = True
    """Ask the judge whether both instructions ask for the same, and reject the rewriting without a clear yes."""
    max_growth: PositiveFloat = 4.0
    """Maximum length of a rewriting, as a multiple of the instruction's (50 words are always allowed)."""
    keep_numbers: bool = True
    """Reject a rewriting that lacks one of the instruction's numbers."""


def run(config: Config, rows: Sequence[Sample], tools: Tools) -> Steps[Result]:
    """Rewrite each row's instruction. Accepted rows are prompts, with the old instruction in `meta["original"]`."""
    found = yield from each(rows, lambda row: _refine(config, row, tools))
    return gather(found)


def _refine(config: Config, row: Sample, tools: Tools) -> Steps[Sample | Rejection]:
    before, last = words_of(row), row.prompt[-1]
    (reply,) = yield [ask_about(tools, "instruction_refinement", row, ("instruction",), instruction=prompt_text(row))]
    try:
        written = field_of(reply, "instruction", config.reply)
        # What is rewritten is the last message; images of earlier ones stay there.
        asked = reworded(last, written if not row.images or images_of(last) else without_tags(written))
        after = said_of(asked) if row.images else written
        _check(config, before, after)
        if config.veto:
            (verdict,) = yield [ask_about(tools, "same_intent", row, SAME, role="judge", first=before, second=after)]
            if scores_of(verdict, SAME, config.reply)["same"] == 0:
                raise Unusable("drift", "according to the judge it asks for something else")
    except Unusable as problem:
        return rejection(row.id, STAGE, problem, reply)
    return replace(row, messages=(*row.prompt[:-1], asked), meta={**row.meta, "operator": STAGE, "original": before})


def _check(config: Config, before: str, after: str) -> None:
    if normalise(before) == normalise(after):
        raise Unusable("unchanged", "the instruction is unchanged")
    old, new = tokens(before), tokens(after)
    most = max(50, config.max_growth * len(old))
    if len(new) > most:
        raise Unusable("too_long", f"{len(new)} words instead of {len(old)}; the maximum is {most:.0f}")
    if config.keep_numbers:
        lost = sorted({unit for unit in old if unit.isdigit()} - set(new))
        if lost:
            raise Unusable("numbers_lost", f"it lacks {', '.join(lost[:5])} (ROUGE-L {rouge_l(old, new):.2f})")
