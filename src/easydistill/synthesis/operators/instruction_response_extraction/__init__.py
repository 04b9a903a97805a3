"""Extracts instruction–response pairs from raw text (paper, 2.1.1), each with the passage that proves the answer.

The evidence comes first, and the question is about it. A pair passes if its evidence occurs in the text, if its
question is a question, makes sense without the text and is new, and if a judge that sees only the evidence gives the
same answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from easydistill.config.base import PositiveInt, Share
from easydistill.contracts.operator import Ask, OperatorConfig, Reply, Result, Role, Steps, each
from easydistill.data.records import Rejection, Sample
from easydistill.data.rouge import rouge_l
from easydistill.synthesis.replies import Unusable, field_of, fields_of, gather, rejection, text_of
from easydistill.synthesis.similarity import NEAR_DUPLICATE, TOO_SIMILAR, Novelty
from easydistill.synthesis.text import prompt_text, tokens
from easydistill.synthesis.tools import Tools
from easydistill.verification.evidence import find_evidence

STAGE = "instruction_response_extraction"
PROMPTS = ("pair_extraction", "evidence_question", "evidence_answer")
REASONS = (
    *("truncated", "malformed_reply", "no_evidence", "not_a_question", "not_standalone", "duplicate", "near_duplicate"),
    *("too_similar", "not_supported"),
)
LABELLED = False
MAKES_PROMPTS = False
REFUSES_IMAGES = (
    "instruction_response_extraction reads text alone: the job image_instruction_generation makes instructions about "
    "images"
)
WANTS = ("evidence", "question", "answer")
_LEANS_ON_TEXT = re.compile(
    r"\b(?:the|this|that|given|above|following) "
    r"(?:passage|text|sentence|evidence|article|paragraph|excerpt|document|context|story|author)\b"
    r"|\baccording to (?:the|this)\b|\bmentioned (?:above|here|in)\b"
    r"|本文|文中|这句|该句|上文|该段|这段|原文|作者|根据(?:上|下|该|这|文)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r".+?(?:[.!?][\"'”’)]*(?=\s|$)|[。！？][”’」』）]*|\n|$)")
_LEAST, _MOST = 16, 500
"""Minimum and maximum length in characters of a sentence used as evidence."""
_ASKS = re.compile(r"[?？؟]|什么|谁|哪|几|多少|如何|怎|为何|是否|吗|呢")
_SAYS_THE_ANSWER = 0.8
"""ROUGE-L F-measure above which the question already says the answer."""
_UNSTATED = re.compile(r"\bnot (?:stated|mentioned|given)\b|未提及|没有提到", re.IGNORECASE)


class Config(OperatorConfig):
    """How many pairs per chunk, and which are rejected."""

    identity_name = "operator.instruction_response_extraction"

    pairs_per_chunk: PositiveInt = 2
    """Pairs requested per chunk, each with a request of its own."""
    evidence: Literal["quoted", "given"] = "quoted"
    """`quoted`: the teacher quotes the passage that proves the answer. `given`: it is given a sentence of the text,
    writes a question about it and answers that from the sentence alone, in two requests; for small models, which quote
    badly."""
    evidence_score: Share = 0.9
    """How much of the quotation must be found in the text, if it is not there word for word: 0.9 allows one character
    in ten to differ (partial ratio)."""
    check_answers: bool = True
    """Have each question answered from the evidence alone, and compare the answers."""
    agreement: Share = 0.3
    """Minimum share of the answer's words that the second answer must contain."""
    too_similar: Share = TOO_SIMILAR
    """A question repeats an earlier one above this share of words that both have in the same order (ROUGE-L
    F-measure)."""


def run(config: Config, rows: Sequence[Sample], tools: Tools) -> Steps[Result]:
    """Extract pairs from each chunk of text, which is the prompt of a row."""
    asked = [(row, number) for row in rows for number in range(config.pairs_per_chunk)]
    made = yield from each(asked, lambda pair: _make(config, *pair, tools))
    novelty = Novelty(NEAR_DUPLICATE, config.too_similar)
    pairs = [_pair(config, row, number, tried, novelty) for (row, number), tried in zip(asked, made, strict=True)]
    if config.check_answers:
        whole = [pair for pair in pairs if isinstance(pair, Sample)]
        seconds = yield [_answer(prompt_text(pair), pair.meta["evidence"], tools, "judge") for pair in whole]
        checked = {pair.id: reply for pair, reply in zip(whole, seconds, strict=True)}
        pairs = [pair if isinstance(pair, Rejection) else _supported(config, pair, checked[pair.id]) for pair in pairs]
    result = gather(pairs)
    result.facts = {
        "chunks": len(rows),
        "chunks_used": len({row.meta["source"] for row in result.accepted}),
    }
    return result


@dataclass(frozen=True)
class _Made:
    """The fields of a pair from the teacher, or why there are none."""

    fields: dict[str, str] | Unusable
    replies: tuple[Reply, ...]


def _make(config: Config, row: Sample, number: int, tools: Tools) -> Steps[_Made]:
    """Request one pair, at once or as a question about a sentence and then its answer."""
    text = prompt_text(row)
    replies: list[Reply] = []
    try:
        if config.evidence == "quoted":
            replies += yield [tools.ask("pair_extraction", text, wants=WANTS, index=number, passage=text)]
            return _Made(fields_of(replies[-1], WANTS, config.reply), tuple(replies))
        evidence = _sentence(text, number, tools)
        replies += yield [tools.ask("evidence_question", text, wants=("question",), index=number, evidence=evidence)]
        question = field_of(replies[-1], "question", config.reply)
        replies += yield [_answer(question, evidence, tools, "teacher")]
        fields = {"evidence": evidence, "question": question, "answer": text_of(replies[-1])}
        return _Made(fields, tuple(replies))
    except Unusable as problem:
        return _Made(problem, tuple(replies))


def _sentence(text: str, number: int, tools: Tools) -> str:
    """The sentence for question `number` about a text: a different one each, as long as there are enough."""
    pieces = (" ".join(piece.split()) for piece in _SENTENCE.findall(text))
    whole = list(dict.fromkeys(piece for piece in pieces if _LEAST <= len(piece) <= _MOST)) or [text]
    tools.random("sentences", text).shuffle(whole)
    return whole[number % len(whole)]


def _answer(question: str, evidence: str, tools: Tools, role: Role) -> Ask:
    # Another sample than the teacher's, in case the judge is the teacher itself.
    index = 1 if role == "judge" else 0
    return tools.ask("evidence_answer", question, role=role, index=index, evidence=evidence, question=question)


def _pair(config: Config, row: Sample, number: int, made: _Made, novelty: Novelty) -> Sample | Rejection:
    identity = f"{row.id}-{number + 1}"
    try:
        if isinstance(made.fields, Unusable):
            raise made.fields
        found = made.fields
        evidence = find_evidence(found["evidence"], prompt_text(row), 100 * config.evidence_score)
        if not evidence.found:
            raise Unusable("no_evidence", evidence.reason)
        if not _ASKS.search(found["question"]):
            raise Unusable("not_a_question", "it has neither a question mark nor a question word")
        if rouge_l(tokens(found["question"]), tokens(found["answer"])) > _SAYS_THE_ANSWER:
            raise Unusable("not_a_question", "it already says the answer")
        leaning = _LEANS_ON_TEXT.search(found["question"])
        if leaning is not None:
            raise Unusable("not_standalone", f"the question refers to {leaning[0]!r}")
        near = novelty.offer(identity, found["question"])
        if near is not None:
            raise Unusable(near.reason, near.detail)
    except Unusable as problem:
        return rejection(identity, STAGE, problem, *made.replies)
    meta = {
        **row.meta,
        "operator": STAGE,
        "source": row.id,
        "evidence": prompt_text(row)[evidence.start : evidence.end],
        "evidence_score": round(evidence.score, 2),
    }
    question, answer = found["question"], found["answer"]
    return Sample(identity, ({"role": "user", "content": question}, {"role": "assistant", "content": answer}), meta)


def _supported(config: Config, pair: Sample, reply: Reply) -> Sample | Rejection:
    """The pair, if the answer from the evidence alone agrees with its own."""
    assert pair.answer is not None
    try:
        second = text_of(reply)
        if _UNSTATED.search(second):
            raise Unusable("not_supported", "the evidence alone does not answer the question")
        expected, given = tokens(pair.answer), set(tokens(second))
        share = sum(unit in given for unit in expected) / max(1, len(expected))
        numbers = {unit for unit in expected if unit.isdigit()}
        if share < config.agreement or not numbers <= given | set(tokens(pair.meta["evidence"])):
            raise Unusable("not_supported", f"{share:.0%} of its words are in the answer from the evidence alone")
    except Unusable as problem:
        return rejection(pair.id, STAGE, problem, reply)
    return pair
