"""Chains of thought in rows: where they stand, how long they are, whether their answers are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from easydistill.data.records import Message, Sample
from easydistill.synthesis.replies import Unusable
from easydistill.synthesis.text import tokens
from easydistill.verification.answers import DEFAULT_STRATEGIES, STATED, Found, Strategy, find_answer
from easydistill.verification.equality import Verdict, Verifier, compare_plainly
from easydistill.verification.numbers import bare, parse_number, spelt_out
from easydistill.verification.redaction import mentions

REFERENCES = ("reference", "final_answer", "solution")
"""Fields of a row that may hold the known answer, beside the answer itself."""


def known_answer(
    row: Sample, strategies: Sequence[Strategy] = DEFAULT_STRATEGIES, *, of_rewriting: bool = False
) -> str | None:
    """The final answer that a row brings: in a field of its own, or as what its answer states or is.

    A field is the answer as it stands, unless it states one (a box, `####`, "the answer is …"). Of a field that is
    prose the last number is taken, where `last_number` is among the strategies. A row's own answer is read by the
    strategies but for that one, or is a number by itself: what is guessed from it would verify against itself.

    Args:
        of_rewriting: whether it is only compared with a rewriting of that answer, which ought to end as that does: then
            its last number will do.
    """
    for name in REFERENCES:
        value = row.meta.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value.strip():
            guessed = find_answer(value, ("last_number",)) if "last_number" in strategies and _is_prose(value) else None
            return _stated(value, STATED) or (value.strip() if guessed is None else guessed.text)
    if row.answer is None:
        return None
    stated = _stated(row.answer, strategies)
    if stated is None and of_rewriting:
        found = find_answer(row.answer, strategies)
        return None if found is None else found.text
    return stated or (bare(row.answer) if parse_number(row.answer) is not None else None)


def _stated(text: str, strategies: Sequence[Strategy]) -> str | None:
    """What a text says to be its final answer. `#### 18` may also end its last line."""
    if "hashes" in strategies:
        _, hashes, last = text.strip().rpartition("\n")[2].rpartition("####")
        if hashes and parse_number(last) is not None:
            return bare(last)
    found = find_answer(text, [name for name in strategies if name in STATED])
    return None if found is None else found.text


def _is_prose(value: str) -> bool:
    """Whether a value is a text around its answer. One with formulas in LaTeX may end inside one of them."""
    verdict = compare_plainly(value, "0")
    return verdict is not None and verdict.outcome == "undecided" and "\\" not in value


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


def may_say_later(text: str, found: Found, known: str) -> bool:
    """Whether a text may say the known answer after the final one that was found in it ("The answer is 7 per box. So 21
    in all."): as such or, unless what was found stands in a box, as a number in words.
    """
    rest = text[found.end :]
    in_words = found.strategy != "boxed" and parse_number(known) is not None and spelt_out(rest)
    return mentions(rest, known) or in_words


def verify(pairs: Sequence[tuple[str, str] | None]) -> list[Verdict | None]:
    """Compare (known, found) answers; None stays None."""
    present = [pair for pair in pairs if pair is not None]
    if not present:
        return [None] * len(pairs)
    with Verifier() as verifier:
        verdicts = iter(verifier.verify_many(present))
    return [None if pair is None else next(verdicts) for pair in pairs]
