"""Instruction–response pairs from raw text (paper, 2.1.1): each with the words of the text that prove it.

A pair passes if the quoted evidence occurs in the text, if the question makes sense without the text, if it is new,
and if somebody who sees only the evidence gives the same answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from easydistill.config.base import PositiveInt, Share
from easydistill.data.records import Rejection, Sample
from easydistill.operators._base import Ask, Reply, Result, Steps
from easydistill.operators._replies import Unusable, fields_of, gather, rejection, text_of
from easydistill.operators._similarity import NEAR_DUPLICATE, TOO_SIMILAR, Novelty
from easydistill.operators._text import prompt_text, tokens
from easydistill.operators._tools import OperatorConfig, Tools
from easydistill.verification.evidence import find_evidence

STAGE = "instruction_response_extraction"
PROMPTS = ("pair_extraction", "evidence_answer")
REASONS = (
    *("truncated", "malformed_reply", "no_evidence", "not_standalone", "duplicate", "near_duplicate", "too_similar"),
    "not_supported",
)
LABELLED = False
MAKES_PROMPTS = False
WANTS = ("question", "answer", "evidence")
_LEANS_ON_TEXT = re.compile(
    r"\b(?:the|this|that|given|above|following) "
    r"(?:passage|text|article|paragraph|excerpt|document|context|story|author)\b"
    r"|\baccording to (?:the|this)\b|\bmentioned (?:above|here|in)\b"
    r"|本文|文中|上文|该段|这段|原文|作者|根据(?:上|下|该|这|文)",
    re.IGNORECASE,
)
_UNSTATED = re.compile(r"\bnot (?:stated|mentioned|given)\b|未提及|没有提到", re.IGNORECASE)


class Config(OperatorConfig):
    """How many pairs a chunk gives, and what they must stand."""

    pairs_per_chunk: PositiveInt = 2
    """Pairs asked for, one a question to the teacher."""
    evidence_score: Share = 0.9
    """How well the quoted evidence must match the text, where it is not there letter for letter (partial ratio)."""
    check_answers: bool = True
    """Have each question answered from the evidence alone, and compare."""
    agreement: Share = 0.3
    """Least share of the answer's words that the second answer must hold."""
    too_similar: Share = TOO_SIMILAR
    """Above this ROUGE-L F-measure a question repeats an earlier one."""


def run(config: Config, rows: Sequence[Sample], tools: Tools) -> Steps[Result]:
    """Extract pairs from each chunk of text; a row is a chunk, its prompt the text."""
    asked = [(row, number) for row in rows for number in range(config.pairs_per_chunk)]
    replies = yield [_question(row, number, tools) for row, number in asked]
    novelty = Novelty(NEAR_DUPLICATE, config.too_similar)
    pairs = [_pair(config, row, number, reply, novelty) for (row, number), reply in zip(asked, replies, strict=True)]
    if config.check_answers:
        whole = [pair for pair in pairs if isinstance(pair, Sample)]
        seconds = yield [_check(pair, tools) for pair in whole]
        checked = {pair.id: reply for pair, reply in zip(whole, seconds, strict=True)}
        pairs = [pair if isinstance(pair, Rejection) else _supported(config, pair, checked[pair.id]) for pair in pairs]
    result = gather(pairs)
    result.facts = {
        "chunks": len(rows),
        "chunks_used": len({row.meta["source"] for row in result.accepted}),
    }
    return result


def _question(row: Sample, number: int, tools: Tools) -> Ask:
    text = prompt_text(row)
    return tools.ask("pair_extraction", text, wants=WANTS, index=number, passage=text)


def _pair(config: Config, row: Sample, number: int, reply: Reply, novelty: Novelty) -> Sample | Rejection:
    identity = f"{row.id}-{number + 1}"
    try:
        found = fields_of(reply, WANTS, config.reply)
        evidence = find_evidence(found["evidence"], prompt_text(row), 100 * config.evidence_score)
        if not evidence.found:
            raise Unusable("no_evidence", evidence.reason)
        leaning = _LEANS_ON_TEXT.search(found["question"])
        if leaning is not None:
            raise Unusable("not_standalone", f"the question speaks of {leaning[0]!r}")
        near = novelty.offer(identity, found["question"])
        if near is not None:
            raise Unusable(near.reason, near.detail)
    except Unusable as problem:
        return rejection(identity, STAGE, problem, reply)
    meta = {
        **row.meta,
        "operator": STAGE,
        "source": row.id,
        "evidence": prompt_text(row)[evidence.start : evidence.end],
        "evidence_score": round(evidence.score, 2),
    }
    asked, answer = found["question"], found["answer"]
    return Sample(identity, ({"role": "user", "content": asked}, {"role": "assistant", "content": answer}), meta)


def _check(pair: Sample, tools: Tools) -> Ask:
    text = prompt_text(pair)
    return tools.ask("evidence_answer", text, role="judge", evidence=pair.meta["evidence"], question=text)


def _supported(config: Config, pair: Sample, reply: Reply) -> Sample | Rejection:
    """The pair, if whoever sees the evidence alone says the same."""
    assert pair.answer is not None
    try:
        second = text_of(reply)
        if _UNSTATED.search(second):
            raise Unusable("not_supported", "the evidence alone does not answer the question")
        wanted, said = tokens(pair.answer), set(tokens(second))
        share = sum(unit in said for unit in wanted) / max(1, len(wanted))
        numbers = {unit for unit in wanted if unit.isdigit()}
        if share < config.agreement or not numbers <= said | set(tokens(pair.meta["evidence"])):
            raise Unusable("not_supported", f"{share:.0%} of its words are in the answer from the evidence alone")
    except Unusable as problem:
        return rejection(pair.id, STAGE, problem, reply)
    return pair
