"""Chains of thought in rows: reading, replacing and measuring them, and verifying their final answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Protocol, TypeVar

from easydistill.data.messages import Message, text_of
from easydistill.data.records import Sample
from easydistill.synthesis.replies import Unusable
from easydistill.synthesis.text import tokens
from easydistill.verification.answers import DEFAULT_STRATEGIES, STATED, Found, Strategy, find_answer
from easydistill.verification.equality import Verifier
from easydistill.verification.numbers import bare, parse_number, spelt_out
from easydistill.verification.plain import Verdict, compare_plainly
from easydistill.verification.redaction import mentions

REFERENCES = ("reference", "final_answer", "solution")
"""Fields of a row that may hold its known answer, tried before the row's own answer."""


def known_answer(
    row: Sample, strategies: Sequence[Strategy] = DEFAULT_STRATEGIES, *, of_rewriting: bool = False
) -> str | None:
    """A row's known final answer, from one of the `REFERENCES` or from the row's own answer; None if there is none.

    A reference field is taken whole unless it states a final answer (a box, `####`, "the answer is …"). From a field of
    prose the last number is taken, if `last_number` is among the strategies. `last_number` is not applied to the row's
    own answer, unless that is a bare number: a guess would be verified against itself.

    Args:
        of_rewriting: the answer is only compared with a rewriting of the row's own answer, which should end in the
            same number, so `last_number` is applied there too.
    """
    references = (_reference(row.meta.get(name), strategies) for name in REFERENCES)
    known = next((reference for reference in references if reference is not None), None)
    if known is not None or row.answer is None:
        return known
    stated = _stated(row.answer, strategies)
    if stated is None and of_rewriting:
        return _text(find_answer(row.answer, strategies))
    return stated or (bare(row.answer) if parse_number(row.answer) is not None else None)


def _reference(value: object, strategies: Sequence[Strategy]) -> str | None:
    """The answer in a reference field; None if it holds neither a number nor text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        return None
    guess = _text(find_answer(value, ("last_number",))) if "last_number" in strategies and _is_prose(value) else None
    return _stated(value, STATED) or (value.strip() if guess is None else guess)


def _stated(text: str, strategies: Sequence[Strategy]) -> str | None:
    """The final answer that a text states explicitly. `#### 18` may also end its last line."""
    if "hashes" in strategies:
        _, hashes, last = text.strip().rpartition("\n")[2].rpartition("####")
        if hashes and parse_number(last) is not None:
            return bare(last)
    return _text(find_answer(text, [name for name in strategies if name in STATED]))


def _text(found: Found | None) -> str | None:
    return None if found is None else found.text


def _is_prose(value: str) -> bool:
    """Whether a value is prose around an answer. Text with LaTeX does not count: its last number may be part of a
    formula."""
    verdict = compare_plainly(value, "0")
    return verdict is not None and verdict.outcome == "undecided" and "\\" not in value


def thought_of(row: Sample) -> str:
    """The chain of thought of a labelled row: its `reasoning_content` if it has one, else its answer."""
    last = row.messages[-1]
    return last.get("reasoning_content") or text_of(last)


def with_thought(row: Sample, thought: str) -> Sample:
    """The row with its chain of thought replaced, wherever `thought_of` found it."""
    last = row.messages[-1]
    changed: Message = {**last, "content": thought}
    if last.get("reasoning_content"):
        changed = {**last, "reasoning_content": thought}
    return replace(row, messages=(*row.messages[:-1], changed))


def length_of(thought: str) -> int:
    """Length of a text in words (Chinese: characters)."""
    return len(tokens(thought))


class Rewriting(Protocol):
    """A rewritten answer."""

    @property
    def pair(self) -> tuple[str, str] | None:
        """The (known, found) final answers; None if they are not compared."""


R = TypeVar("R", bound=Rewriting)


def unchanged(made: Sequence[R | Unusable], verifier: Verifier | None = None) -> list[R | Unusable]:
    """Rewritings whose final answer is the known one or was not compared; the others become why they are rejected."""
    verdicts = verify([None if isinstance(item, Unusable) else item.pair for item in made], verifier)
    return [
        item if isinstance(item, Unusable) or verdict is None else _changed(item.pair, verdict) or item
        for item, verdict in zip(made, verdicts, strict=True)
    ]


def _changed(pair: tuple[str, str] | None, verdict: Verdict) -> Unusable | None:
    if verdict.equal:
        return None
    assert pair is not None
    kind = "undecided" if verdict.outcome == "undecided" else "answer_changed"
    known, found = pair
    return Unusable(kind, f"the answer was {known!r}, the rewriting ends in {found!r} {verdict.reason}".strip())


def may_say_later(text: str, found: Found, known: str) -> bool:
    """Whether a text may state the known answer after the final answer found in it ("The answer is 7 per box. So 21 in
    all."): literally or, unless the found answer is boxed, as a number in words.
    """
    rest = text[found.end :]
    in_words = found.strategy != "boxed" and parse_number(known) is not None and spelt_out(rest)
    return mentions(rest, known) or in_words


def verify(pairs: Sequence[tuple[str, str] | None], verifier: Verifier | None = None) -> list[Verdict | None]:
    """Compare pairs of (known, found) answers. The verdict of a None is None.

    Args:
        verifier: makes the comparisons; by default one for this call.
    """
    present = [pair for pair in pairs if pair is not None]
    if not present:
        return [None] * len(pairs)
    with nullcontext(verifier) if verifier is not None else Verifier() as compare:
        verdicts = iter(compare.verify_many(present))
    return [None if pair is None else next(verdicts) for pair in pairs]
