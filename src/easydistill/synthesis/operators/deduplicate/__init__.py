"""Drops duplicates of rows: equal, near duplicate (MinHash), too similar (ROUGE-L) or same in meaning (embeddings).

The result depends on the rows, not on their order. Rows are visited by the hash of the compared text's normalised
spelling, then by the hash of their messages, then by id; a row is kept if it is new with respect to those kept so far.
So no two kept rows are near each other, and every dropped row is near a kept one, which its rejection names: in that
order, the kept rows are the lexicographically first maximal independent set of the graph "is near". (Connected
components would not depend on the order either, but would reduce a chain of small steps to a single row.)

Where prompts are compared, rows are compared only with rows that have the same surroundings: the same system text,
tools, template variables and images. The same words under other instructions, or about another image, ask for another
answer. Images are the same if their files are.
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
from easydistill.data.messages import identity_of, said, text_of
from easydistill.data.reading import ROW
from easydistill.data.records import Rejection, Sample, canonical_json
from easydistill.data.spool import Spool, like
from easydistill.synthesis.images import words_of
from easydistill.synthesis.meaning import Meanings, embeddings
from easydistill.synthesis.similarity import NEAR_DUPLICATE, TOO_SIMILAR, Near, Novelty, Spelling
from easydistill.synthesis.text import normalise
from easydistill.synthesis.tools import Tools

STAGE = "deduplicate"
SUMMARY = "Rows without their duplicates and near duplicates."
PROMPTS: tuple[str, ...] = ()
REASONS = ("duplicate", "near_duplicate", "too_similar", "same_meaning")
LABELLED = None
MAKES_PROMPTS = False
KEEPS_IMAGES = True


class Config(Section):
    """What counts as a duplicate."""

    identity_name = "operator.deduplicate"

    compare: Literal["prompt", "answer", "both"] = "prompt"
    """Part of a row that is compared; prompts only with those under the same system text, with the same tools, template
    variables and images. To keep several chains of thought per problem, use `answer` or `both`."""
    near_duplicate: PositiveShare = NEAR_DUPLICATE
    """Texts are near duplicates from this share of common pieces of 5 characters on, of all pieces that they have
    (Jaccard similarity, estimated by MinHash)."""
    too_similar: Share = TOO_SIMILAR
    """Rows are too similar above this share of words that both have in the same order (ROUGE-L F-measure); 1 switches
    the check off."""
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
    vectors = None
    if config.embeddings is not None:
        vectors = embeddings(config.embeddings, [_compared(config, row) for row in rows])
    visits = _Visits(config, rows)
    # Of each row: 0 if it is kept, otherwise the place of why it is not, from 1.
    why = array("L", bytes(array("L").itemsize * len(rows)))
    nears = Spool[Near]()
    cut = 0
    for group in visits.groups():
        pool = Novelty(config.near_duplicate, config.too_similar)
        meanings = None if vectors is None else Meanings(vectors, config.same_meaning)
        for number in group:
            identity, spelling = visits.row(number)
            text = _compared(config, rows[number]) if meanings else ""
            found = pool.check(spelling) or (meanings.check(text) if meanings else None)
            if found is not None:
                nears.append(found)
                why[number] = len(nears)
                continue
            pool.add(identity, spelling)
            if meanings:
                meanings.add(identity, text)
        cut += pool.cut
    kept, dropped, counts = like(rows), like(rows), Counter[str]()
    for number, row in enumerate(rows):
        if not why[number]:
            kept.append(row)
            continue
        reason, detail, _ = nears[why[number] - 1]
        counts[reason] += 1
        dropped.append(Rejection(row.id, STAGE, reason, detail, 1, _compared(config, row)))
    facts = {"kept": len(kept), "dropped": dict(counts.most_common())}
    return Result(kept, dropped, len(rows), facts | ({"searches_cut": cut} if cut else {}))


class _Visits:
    """What is compared of each row, on disk, and the order in which rows are visited."""

    def __init__(self, config: Config, rows: Sequence[Sample]) -> None:
        self._rows = rows
        self._read = Spool[tuple[str, str, bool]]()
        self._prefixes = array("Q")
        """The first eight bytes of each row's hash."""
        self._groups = array("L")
        numbers: dict[bytes, int] = {}
        for row in rows:
            spelling = Spelling.of(_compared(config, row))
            self._read.append((row.id, *spelling))
            self._prefixes.append(int.from_bytes(_hash(spelling.encode())[:8]))
            around = b"" if config.compare == "answer" else _surroundings(row)
            self._groups.append(numbers.setdefault(around, len(numbers)))

    def row(self, number: int) -> tuple[str, Spelling]:
        """A row's id, and what is compared of it."""
        identity, text, has_tokens = self._read[number]
        return identity, Spelling(text, has_tokens)

    def groups(self) -> Iterator[Iterator[int]]:
        """Numbers of rows that are compared with each other, in visiting order. A row without its like is in none."""
        import numpy

        order = self._order()
        groups = numpy.array(self._groups)[order]
        order = order[numpy.argsort(groups, kind="stable")]
        for begin, end in _runs(numpy.sort(groups)):
            yield map(int, order[begin:end])

    def _order(self) -> Any:
        """Numbers of the rows, by the hash of the compared spelling, then that of the messages, then the id."""
        import numpy

        prefixes = numpy.array(self._prefixes)
        order = numpy.argsort(prefixes, kind="stable")
        for begin, end in _runs(prefixes[order]):
            order[begin:end] = sorted(order[begin:end].tolist(), key=self._sort_key)
        return order

    def _sort_key(self, number: int) -> tuple[bytes, bytes, str]:
        identity, spelling = self.row(number)
        row = self._rows[number]
        messages = canonical_json(identity_of(row.messages, row)).encode("utf-8", "surrogatepass")
        return _hash(spelling.encode()), _hash(messages), identity


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _surroundings(row: Sample) -> bytes:
    """A hash of what stands around a row's prompt; nothing where nothing does."""
    system = "\n".join(normalise(text_of(message)) for message in row.prompt if message["role"] == "system")
    if not system and not row.tools and not row.template_kwargs and not row.images:
        return b""
    around = canonical_json([system, list(row.tools), row.template_kwargs, *row.images])
    return hashlib.blake2b(around.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _compared(config: Config, row: Sample) -> str:
    if config.compare == "prompt":
        return words_of(row)
    if row.answer is None:
        raise UnfitRows(f"row {row.meta.get(ROW, row.id)} has no answer to compare: label it, or set compare to prompt")
    answer = said(row.messages[-1])
    return answer if config.compare == "answer" else f"{words_of(row)}\n{answer}"


def _runs(ordered: Any) -> Iterator[tuple[int, int]]:
    """(begin, end) of each run of more than one equal value in a sorted array."""
    import numpy

    ends = numpy.flatnonzero(numpy.append(ordered[1:] != ordered[:-1], True)) + 1
    begins = numpy.append(0, ends[:-1])
    for run in numpy.flatnonzero(ends - begins > 1):
        yield int(begins[run]), int(ends[run])
