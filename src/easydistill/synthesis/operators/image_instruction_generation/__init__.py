"""Instructions about images (paper, 2.1.1, for the images of "Multi-modal KD").

The teacher is shown the images of a row and asked for something that can be asked about them, each time of another
kind. A judge that is shown them too says whether it can be answered from what is seen, and whether it needs to be seen:
a question that anybody could answer without looking teaches a student not to look. Accepted rows are prompts with the
images; the job `label` has them answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from easydistill.config.base import PositiveInt, PositiveShare, Share
from easydistill.contracts.operator import OperatorConfig, Result, Steps, each
from easydistill.data.records import Rejection, Sample
from easydistill.synthesis.images import ImageNovelty, about, ask_about, without_tags
from easydistill.synthesis.operators.instruction_expansion import check_instruction
from easydistill.synthesis.replies import Unusable, field_of, gather, rejection, scores_of
from easydistill.synthesis.similarity import NEAR_DUPLICATE, TOO_SIMILAR
from easydistill.synthesis.tools import Tools

STAGE = "image_instruction_generation"
PROMPTS = ("image_instruction", "image_instruction_check")
REASONS = (
    *("truncated", "malformed_reply", "too_short", "too_long", "echo", "duplicate", "near_duplicate", "too_similar"),
    *("malformed_score", "not_answerable", "image_not_needed"),
)
LABELLED = False
MAKES_PROMPTS = False
SHOWS_IMAGES = ("teacher", "judge")
Kind = Literal["describe", "read", "count", "locate", "compare", "explain", "reason"]
KINDS: tuple[Kind, ...] = ("describe", "read", "count", "locate", "compare", "explain", "reason")
WANTS = ("instruction",)
CHECKS = {"answerable": (0, 1), "needs_image": (0, 1)}
KIND = "kind"
"""Key of a row's `meta` with the kind of its instruction."""


class Config(OperatorConfig):
    """How many instructions about each image, of which kinds, and which are rejected."""

    instructions_per_image: PositiveInt = 2
    """Instructions requested about the images of each row, each with a request of its own."""
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = KINDS
    """Kinds of instructions, dealt out to each row in an order of its own."""
    check: bool = True
    """Have the judge say whether an instruction can be followed by looking, and only by looking; reject others."""
    min_tokens: PositiveInt = 3
    """Minimum length of an instruction, in words (Chinese: characters)."""
    max_tokens: PositiveInt = 200
    """Maximum length of an instruction, in words (Chinese: characters)."""
    near_duplicate: PositiveShare = NEAR_DUPLICATE
    """Texts about the same images are near duplicates from this share of common pieces of 5 characters on, of all
    pieces that they have (Jaccard similarity, estimated by MinHash)."""
    too_similar: Share = TOO_SIMILAR
    """An instruction is too similar above this share of words that it has in the same order as another one about the
    same images (ROUGE-L F-measure)."""


def run(config: Config, rows: Sequence[Sample], tools: Tools) -> Steps[Result]:
    """Make instructions about the images of each row, whose message has no text."""
    asked = [(row, number) for row in rows for number in range(config.instructions_per_image)]
    novelty = ImageNovelty(config.near_duplicate, config.too_similar)
    result = gather((yield from each(asked, lambda pair: _make(config, *pair, novelty, tools))))
    result.facts = {
        "rows_of_images": len(rows),
        "with_instructions": len({row.meta["source"] for row in result.accepted}),
        "kinds": {kind: sum(row.meta[KIND] == kind for row in result.accepted) for kind in config.kinds},
    }
    return result


def _make(config: Config, row: Sample, number: int, novelty: ImageNovelty, tools: Tools) -> Steps[Sample | Rejection]:
    identity, kind = f"{row.id}-{number + 1}", _kind(config, row, number, tools)
    replies = yield [ask_about(tools, "image_instruction", row, WANTS, index=number, kind=kind)]
    try:
        text = without_tags(field_of(replies[0], "instruction", config.reply))
        check_instruction(text, config.min_tokens, config.max_tokens)
        near = novelty.offer(identity, row.images, text)
        if near is not None:
            raise Unusable(near.reason, near.detail)
        if config.check:
            replies = yield [ask_about(tools, "image_instruction_check", row, CHECKS, role="judge", instruction=text)]
            found = scores_of(replies[0], CHECKS, config.reply)
            if not found["answerable"]:
                raise Unusable("not_answerable", f"according to the judge, what is seen does not answer {text!r}")
            if not found["needs_image"]:
                raise Unusable("image_not_needed", f"according to the judge, nobody has to look to answer {text!r}")
    except Unusable as problem:
        return rejection(identity, STAGE, problem, *replies)
    meta = {**row.meta, "operator": STAGE, "source": row.id, KIND: kind}
    return Sample(identity, (about(row.images, text),), meta)


def _kind(config: Config, row: Sample, number: int, tools: Tools) -> Kind:
    """The kind of a row's instruction: a different one each, as long as there are enough."""
    kinds = list(config.kinds)
    tools.random(STAGE, row.id).shuffle(kinds)
    return kinds[number % len(kinds)]
