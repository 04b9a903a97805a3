"""Drops duplicates of rows: equal, near duplicate (MinHash), too similar (ROUGE-L) or same in meaning (embeddings).

The result depends on the rows, not on their order. Rows are visited by the hash of the compared text's normalised
spelling, then by the hash of their messages, then by id; a row is kept if it is new with respect to those kept so far.
So no two kept rows are near each other, and every dropped row is near a kept one, which its rejection names: in that
order, the kept rows are the lexicographically first maximal independent set of the graph "is near". (Connected
components would not depend on the order either, but would reduce a chain of small steps to a single row.)

Where prompts are compared, rows are compared only with rows that have the same surroundings: the same system text,
tools and template variables. The same words under other instructions ask for another answer.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from easydistill.config.base import PositiveShare, Section, Share
from easydistill.config.models import ModelRef
from easydistill.contracts.operator import Result, Steps, UnfitRows
from easydistill.data.messages import identity_of, said
from easydistill.data.reading import ROW
from easydistill.data.records import Rejection, Sample, canonical_json
from easydistill.data.spool import like
from easydistill.synthesis.meaning import Meanings, embeddings
from easydistill.synthesis.similarity import NEAR_DUPLICATE, TOO_SIMILAR, Near, Novelty
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
    """Part of a row that is compared; prompts only with those under the same system text, with the same tools and
    template variables. To keep several chains of thought per problem, use `answer` or `both`."""
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
    near: dict[int, Near] = {}
    cut = 0
    vectors = None
    if config.embeddings is not None:
        vectors = embeddings(config.embeddings, [_compared(config, row) for row in rows])
    for group in _groups(config, rows):
        pool = Novelty(config.near_duplicate, config.too_similar)
        meanings = None if vectors is None else Meanings(vectors, config.same_meaning)
        for number in group:
            row = rows[number]
            text = _compared(config, row)
            found = pool.check(text) or (meanings.check(text) if meanings else None)
            if found is not None:
                near[number] = found
                continue
            pool.add(row.id, text)
            if meanings:
                meanings.add(row.id, text)
        cut += pool.cut
    kept, dropped, counts = like(rows), like(rows), Counter[str]()
    for number, row in enumerate(rows):
        if number not in near:
            kept.append(row)
            continue
        reason, detail, _ = near[number]
        counts[reason] += 1
        dropped.append(Rejection(row.id, STAGE, reason, detail, 1, _compared(config, row)))
    facts = {"kept": len(kept), "dropped": dict(counts.most_common())}
    return Result(kept, dropped, len(rows), facts | ({"searches_cut": cut} if cut else {}))


def _groups(config: Config, rows: Sequence[Sample]) -> Iterator[list[int]]:
    """Numbers of the rows that are compared with each other, in visiting order. A row without its like is in none."""
    order = _visiting_order(config, rows)
    if config.compare == "answer":
        yield order
        return
    # Numbered, as hashes of all rows would take more memory than the rows' own numbers.
    numbers: dict[bytes, int] = {}
    where = array("l", (numbers.setdefault(_surroundings(row), len(numbers)) for row in rows))
    found: dict[int, list[int]] = {}
    for number in order:
        found.setdefault(where[number], []).append(number)
    yield from (group for group in found.values() if len(group) > 1)


def _surroundings(row: Sample) -> bytes:
    """A hash of what stands around a row's prompt; nothing where nothing does."""
    system = "\n".join(normalise(message["content"]) for message in row.prompt if message["role"] == "system")
    if not system and not row.tools and not row.template_kwargs:
        return b""
    around = canonical_json([system, list(row.tools), row.template_kwargs])
    return hashlib.blake2b(around.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _compared(config: Config, row: Sample) -> str:
    if config.compare == "prompt":
        return prompt_text(row)
    if row.answer is None:
        raise UnfitRows(f"row {row.meta.get(ROW, row.id)} has no answer to compare: label it, or set compare to prompt")
    answer = said(row.messages[-1])
    return answer if config.compare == "answer" else f"{prompt_text(row)}\n{answer}"


def _visiting_order(config: Config, rows: Sequence[Sample]) -> list[int]:
    """Numbers of the rows, by the hash of the compared text's spelling, then that of the messages, then the id."""
    import numpy

    keys = numpy.fromiter((_sort_key(config, row) for row in rows), "S64", len(rows))
    order = numpy.argsort(keys, kind="stable").tolist()
    for begin, end in _runs(keys[order]):
        order[begin:end] = sorted(order[begin:end], key=lambda number: rows[number].id)
    return order


def _sort_key(config: Config, row: Sample) -> bytes:
    spelling = normalise(_compared(config, row)).encode("utf-8", "surrogatepass")
    messages = canonical_json(identity_of(row.messages, row)).encode("utf-8", "surrogatepass")
    return hashlib.sha256(spelling).digest() + hashlib.sha256(messages).digest()


def _runs(ordered: Any) -> Iterator[tuple[int, int]]:
    """(begin, end) of each run of more than one equal value in a sorted array."""
    import numpy

    ends = numpy.flatnonzero(numpy.append(ordered[1:] != ordered[:-1], True)) + 1
    begins = numpy.append(0, ends[:-1])
    for run in numpy.flatnonzero(ends - begins > 1):
        yield int(begins[run]), int(ends[run])
