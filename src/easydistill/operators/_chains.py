"""Chains of thought in rows: where they stand, how long they are, whether their answers are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from easydistill.data.records import Message, Sample
from easydistill.operators._replies import Unusable
from easydistill.operators._text import tokens
from easydistill.verification.answers import DEFAULT_STRATEGIES, Strategy, find_answer
from easydistill.verification.equality import Verdict, Verifier

REFERENCES = ("reference", "final_answer", "solution")
"""Fields of a row that may hold the known answer, beside the answer itself."""


def known_answer(row: Sample, strategies: Sequence[Strategy] = DEFAULT_STRATEGIES) -> str | None:
    """The final answer that a row brings: in a field of its own, or inside its answer."""
    for name in REFERENCES:
        value = row.meta.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value.strip():
            found = find_answer(value, strategies)
            return found.text if found is not None else value.strip()
    if row.answer is None:
        return None
    found = find_answer(row.answer, strategies)
    return found.text if found is not None else None


def thought_of(row: Sample) -> str:
    """The chain of thought of a labelled row: the separate one, where there is one, else the answer."""
    last = row.messages[-1]
    return last.get("reasoning_content") or last["content"]


def with_thought(row: Sample, thought: str) -> Sample:
    """The row with another chain of thought in the same place."""
    last = row.messages[-1]
    changed: Message = (
        {**last, "reasoning_content": thought}
        if last.get("reasoning_content")
        else {
            **last,
            "content": thought,
        }
    )
    return replace(row, messages=(*row.messages[:-1], changed))


def length_of(thought: str) -> int:
    """Words of a text (Chinese: characters)."""
    return len(tokens(thought))


def changed_answer(pair: tuple[str, str] | None, verdict: Verdict | None) -> Unusable | None:
    """Why a rewriting with these final answers, (known, found), is refused; None if they are equal or not compared."""
    if verdict is None or verdict.equal:
        return None
    assert pair is not None
    kind = "undecided" if verdict.outcome == "undecided" else "answer_changed"
    known, found = pair
    return Unusable(kind, f"{found!r} where {known!r} was the answer {verdict.reason}".strip())


def verify(pairs: Sequence[tuple[str, str] | None]) -> list[Verdict | None]:
    """Compare (known, found) answers; None stays None."""
    present = [pair for pair in pairs if pair is not None]
    if not present:
        return [None] * len(pairs)
    with Verifier() as verifier:
        verdicts = iter(verifier.verify_many(present))
    return [None if pair is None else next(verdicts) for pair in pairs]
