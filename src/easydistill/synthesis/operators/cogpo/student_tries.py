"""How often a student solves problems, alone and with a chain of thought before it, and how it fails.

A try is *right* where its final answer verifies against the known one, and *wrong* only where that is certain: the two
are verified different, the text was not cut off, the answer was read as what it is (see `certainly_read`), and the
known answer stands neither in it nor after it, nor, where it is but the last number of the text, anywhere before. All
else (undecided, truncated, without an answer) is neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from easydistill.config.base import PositiveInt
from easydistill.contracts.operator import Ask, OperatorConfig, Reply, Steps
from easydistill.data.records import Message, Sample, answer_message
from easydistill.synthesis.chains import may_say_later, thought_of
from easydistill.synthesis.replies import Unusable
from easydistill.synthesis.text import prompt_text
from easydistill.synthesis.tools import Tools
from easydistill.verification.answers import DEFAULT_STRATEGIES, Found, Strategy, find_answer
from easydistill.verification.equality import Verdict, Verifier
from easydistill.verification.numbers import parse_number
from easydistill.verification.redaction import REDACTED, mentions, redact

PROMPT = "cot_hint"
_NO_TEXT = ("empty_content", "null_content")


class TriesConfig(OperatorConfig):
    """How a student's answers are sampled and read."""

    student_samples: PositiveInt = 4
    """Answers of the student to a problem alone, and as many to the problem with a chain of thought shown."""
    truncated_are_wrong: bool = False
    """Take an answer that was cut off, and whose last number is wrong, for a wrong one."""
    boxed: bool = True
    """Ask for final answers in \\boxed{}."""
    strategies: tuple[Strategy, ...] = DEFAULT_STRATEGIES
    """Where final answers are looked for, in this order."""


@dataclass(frozen=True)
class Chain:
    """A problem with a chain of thought, and its known answer, which the chain's final answer equals."""

    row: Sample
    known: str

    @property
    def redacted(self) -> str:
        return redact(thought_of(self.row), self.known)


@dataclass(frozen=True)
class Tries:
    """What came of a student's tries at one problem."""

    kinds: Counter[str]
    """How many were `right`, `wrong`, `unsure`, `undecided`, `truncated`, `no_answer`."""
    wrong: tuple[Message, ...]
    """The wrong answers, each once."""

    @property
    def asked(self) -> int:
        return self.kinds.total()

    @property
    def right(self) -> int:
        return self.kinds["right"]

    @property
    def rate(self) -> float:
        return self.right / self.asked


def alone(config: TriesConfig, verifier: Verifier, chains: Sequence[Chain]) -> Steps[list[Tries | Unusable]]:
    """The student answers each problem by itself."""
    replies = yield [
        Ask(chain.row.prompt, "student", number) for chain in chains for number in range(config.student_samples)
    ]
    return _read(config, chains, replies, verifier)


def with_chain(
    config: TriesConfig, tools: Tools, verifier: Verifier, chains: Sequence[Chain]
) -> Steps[list[Tries | Unusable]]:
    """The student answers each problem with the chain before it, whose final answer is redacted."""
    asks: list[Ask] = []
    for chain in chains:
        text, (*before, last) = prompt_text(chain.row), chain.row.prompt
        values: dict[str, Any] = {"instruction": last["content"], "thought": chain.redacted, "redacted": REDACTED}
        asks += [
            tools.ask(PROMPT, text, role="student", index=number, before=before, boxed=config.boxed, **values)
            for number in range(config.student_samples)
        ]
    replies = yield asks
    return _read(config, chains, replies, verifier)


def _read(
    config: TriesConfig, chains: Sequence[Chain], replies: Sequence[Reply], verifier: Verifier
) -> list[Tries | Unusable]:
    known = [chain.known for chain in chains for _ in range(config.student_samples)]
    found = [find_answer(reply.text or "", config.strategies) for reply in replies]
    pairs = [None if answer is None else (right, answer.text) for right, answer in zip(known, found, strict=True)]
    verdicts = iter(verifier.verify_many(pair for pair in pairs if pair is not None))
    kinds: list[str | Unusable] = []
    for reply, right, answer in zip(replies, known, found, strict=True):
        certain = answer is not None and certainly_read(reply.text or "", answer, right)
        kinds.append(_kind(config, reply, next(verdicts) if answer is not None else None, certain))
    made: list[Tries | Unusable] = []
    for start in range(0, len(replies), config.student_samples):
        some = kinds[start : start + config.student_samples]
        problem = next((kind for kind in some if isinstance(kind, Unusable)), None)
        made.append(problem or _tries(some, replies[start : start + config.student_samples]))
    return made


def _kind(config: TriesConfig, reply: Reply, verdict: Verdict | None, certain: bool) -> str | Unusable:
    truncated = reply.finish_reason == "length"
    if reply.problem is not None:
        reason = reply.problem[0]
        if reason == "truncated":
            return "truncated"
        return "no_answer" if reason in _NO_TEXT else Unusable(*reply.problem, reply)
    if truncated and not (config.truncated_are_wrong and verdict is not None and verdict.outcome == "different"):
        return "truncated"
    if verdict is None:
        return "no_answer"
    if verdict.equal:
        return "right"
    if verdict.outcome == "undecided":
        return "undecided"
    return "wrong" if certain else "unsure"


def certainly_read(text: str, found: Found, known: str) -> bool:
    """Whether an answer that differs from the known one was taken from a text as what it is.

    "The answer is is 5", "the answer is five" and a last number that only continues the answer compare as different
    from 5, and are not. So nothing that mentions the known answer is certain, nor what may be followed by it, an answer
    beside a number must be one, and any other must stand in a box or be a choice's letter.
    """
    if mentions(text if found.strategy == "last_number" else found.text, known) or may_say_later(text, found, known):
        return False
    if parse_number(known) is not None:
        return parse_number(found.text) is not None
    return found.strategy == "boxed" or len(found.text) == len(known) == 1


def _tries(kinds: Sequence[str | Unusable], replies: Sequence[Reply]) -> Tries:
    wrong: dict[str, Message] = {}
    for kind, reply in zip(kinds, replies, strict=True):
        if kind == "wrong":
            text = (reply.text or "").strip()
            wrong.setdefault(text, answer_message(text, reply.reasoning))
    return Tries(Counter(kind for kind in kinds if isinstance(kind, str)), tuple(wrong.values()))
