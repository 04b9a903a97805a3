"""Drops duplicates of rows: equal, near duplicate (MinHash), too similar (ROUGE-L) or same in meaning (embeddings).

The result depends on the rows, not on their order. Rows are visited by the hash of the compared text's normalised
spelling, then by the hash of their messages, then by id; a row is kept if it is new with respect to those kept so far.
So no two kept rows are near each other, and every dropped row is near a kept one, which its rejection names: in that
order, the kept rows are the lexicographically first maximal independent set of the graph "is near". (Connected
components would not depend on the order either, but would reduce a chain of small steps to a single row.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from easydistill.config.base import PositiveShare, Section, Share
from easydistill.config.models import ModelRef
from easydistill.contracts.operator import Result, Steps, UnfitRows
from easydistill.data.reading import ROW
from easydistill.data.records import Rejection, Sample, content_hash, count_reasons
from easydistill.synthesis.meaning import Meanings, embeddings
from easydistill.synthesis.similarity import NEAR_DUPLICATE, TOO_SIMILAR, Novelty
from easydistill.synthesis.text import normalise, prompt_text
from easydistill.synthesis.tools import Tools

STAGE = "deduplicate"
SUMMARY = "Rows without their duplicates and near duplicates."
PROMPTS: tuple[str, ...] = ()
REASONS = ("duplicate", "near_duplicate", "too_similar", "same_meaning")
LABELLED = None
MAKES_PROMPTS = False


class Config(Section):
    """What counts as a duplicate."""

    identity_name = "operator.deduplicate"

    compare: Literal["prompt", "answer", "both"] = "prompt"
    """Part of a row that is compared. To keep several chains of thought per problem, use `answer` or `both`."""
    near_duplicate: PositiveShare = NEAR_DUPLICATE
    """Minimum estimated Jaccard similarity (MinHash, 5-character shingles) of near duplicates."""
    too_similar: Share = TOO_SIMILAR
    """ROUGE-L F-measure above which rows are too similar; 1 switches the check off."""
    embeddings: ModelRef | None = None
    """A local model whose embeddings are compared too, preferably a sentence-embedding model."""
    same_meaning: PositiveShare = 0.95
    """Minimum cosine similarity of embeddings of rows that mean the same."""


def run(config: Config, rows: Sequence[Sample], tools: Tools | None = None) -> Steps[Result]:
    """Drop rows that are near a kept one. Asks no model.

    Raises:
        UnfitRows: answers are compared, and a row has none.
        MissingExtra: `synth`, or for embeddings `train`, is not installed.
        ModelError: the model of `embeddings` cannot be loaded.
    """
    yield from ()
    return deduplicate(config, rows)


def deduplicate(config: Config, rows: Sequence[Sample]) -> Result:
    """Accepted and rejected rows, both in the rows' order; see the module's docstring."""
    texts = {row.id: _compared(config, row) for row in rows}
    pool = Novelty(config.near_duplicate, config.too_similar)
    meanings = None
    if config.embeddings is not None:
        meanings = Meanings(embeddings(config.embeddings, texts.values()), config.same_meaning)
    rejected: dict[str, Rejection] = {}
    for row in sorted(rows, key=lambda row: _sort_key(row, texts[row.id])):
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


def _sort_key(row: Sample, text: str) -> tuple[str, str, str]:
    spelling = hashlib.sha256(normalise(text).encode("utf-8", "surrogatepass")).hexdigest()
    return spelling, content_hash(list(row.messages)), row.id
