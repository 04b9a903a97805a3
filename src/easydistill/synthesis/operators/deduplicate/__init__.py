"""Rows without their near-equals: the same text, almost the same (MinHash), too similar (ROUGE-L), the same in meaning.

Which rows stay depends on the rows, not on their order. They are gone through by the hash of their compared text (its
normalised spelling), then by the hash of what they say, then by id; a row stays if it is new beside those that stay
already. So no two of the rows that stay are near each other, and every other row is near one that stays, which its
rejection names: the lexicographically first maximal independent set of the graph "is near", in that order. (Connected
components would be independent of order too, but a chain of small steps would cost all rows but one.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from easydistill.config.base import PositiveShare, Section, Share
from easydistill.config.models import ModelRef
from easydistill.contracts.operator import Result, Steps, UnfitRows
from easydistill.data.formats import ROW
from easydistill.data.records import Rejection, Sample, content_hash, count_reasons
from easydistill.synthesis.meaning import Meanings, embeddings
from easydistill.synthesis.similarity import NEAR_DUPLICATE, TOO_SIMILAR, Novelty
from easydistill.synthesis.text import normalise, prompt_text
from easydistill.synthesis.tools import Tools

STAGE = "deduplicate"
SUMMARY = "Rows without their near-equals."
PROMPTS: tuple[str, ...] = ()
REASONS = ("duplicate", "near_duplicate", "too_similar", "same_meaning")
LABELLED = None
MAKES_PROMPTS = False


class Config(Section):
    """What counts as the same row."""

    identity_name = "operator.deduplicate"

    compare: Literal["prompt", "answer", "both"] = "prompt"
    """Part of a row that is compared. Several chains of thought for one problem need `answer` or `both`."""
    near_duplicate: PositiveShare = NEAR_DUPLICATE
    """From this estimated Jaccard similarity of 5-character runs on (MinHash), rows are near duplicates."""
    too_similar: Share = TOO_SIMILAR
    """Above this ROUGE-L F-measure, rows are too similar; 1 switches the check off."""
    embeddings: ModelRef | None = None
    """A model on this machine whose embeddings are compared too; best one made for sentences."""
    same_meaning: PositiveShare = 0.95
    """From this cosine similarity of embeddings on, rows mean the same."""


def run(config: Config, rows: Sequence[Sample], tools: Tools | None = None) -> Steps[Result]:
    """Drop rows that are near one that stays. Asks nothing.

    Raises:
        UnfitRows: answers are to be compared, and a row has none.
        MissingExtra: `synth`, or for embeddings `train`, is not installed.
        ModelError: the model of `embeddings` cannot be loaded.
    """
    yield from ()
    return deduplicate(config, rows)


def deduplicate(config: Config, rows: Sequence[Sample]) -> Result:
    """Accepted and rejected rows, both in the rows' order; see the module for which is which."""
    texts = {row.id: _compared(config, row) for row in rows}
    pool = Novelty(config.near_duplicate, config.too_similar)
    meanings = None
    if config.embeddings is not None:
        meanings = Meanings(embeddings(config.embeddings, texts.values()), config.same_meaning)
    rejected: dict[str, Rejection] = {}
    for row in sorted(rows, key=lambda row: _place(row, texts[row.id])):
        text = texts[row.id]
        near = pool.check(text) or (meanings.check(text) if meanings else None)
        if near is None:
            pool.add(row.id, text)
            if meanings:
                meanings.add(row.id, text)
        else:
            rejected[row.id] = Rejection(row.id, STAGE, near.reason, near.detail, 1, text)
    dropped = [rejected[row.id] for row in rows if row.id in rejected]
    kept = [row for row in rows if row.id not in rejected]
    facts = {"kept": len(kept), "dropped": count_reasons(dropped)}
    return Result(kept, dropped, len(rows), facts)


def _compared(config: Config, row: Sample) -> str:
    if config.compare == "prompt":
        return prompt_text(row)
    if row.answer is None:
        raise UnfitRows(f"row {row.meta.get(ROW, row.id)} has no answer to compare: label it, or set compare to prompt")
    return row.answer if config.compare == "answer" else f"{prompt_text(row)}\n{row.answer}"


def _place(row: Sample, text: str) -> tuple[str, str, str]:
    spelling = hashlib.sha256(normalise(text).encode("utf-8", "surrogatepass")).hexdigest()
    return spelling, content_hash(list(row.messages)), row.id
