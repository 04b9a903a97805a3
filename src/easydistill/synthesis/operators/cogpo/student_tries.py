"""How often a student solves problems, alone and with a chain of thought shown, and its wrong answers.

A try is *right* if its final answer is verified equal to the known one. It is *wrong* only if that is certain: the two
are verified different, the text was not truncated, and the final answer was not merely misread (see `certainly_wrong`).
All others (undecided, truncated, without an answer) are neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from easydistill.config.base import PositiveInt
from easydistill.contracts.operator import Ask, OperatorConfig, Reply, Steps
from easydistill.data.messages import Message, answer_message, images_of, tagged_text
from easydistill.data.records import CUT, Sample
from easydistill.synthesis.chains import may_say_later, thought_of, verify
from easydistill.synthesis.images import with_images, words_of
from easydistill.synthesis.replies import Unusable
from easydistill.synthesis.tools import Tools
from easydistill.verification.answers import DEFAULT_STRATEGIES, Found, Strategy, find_answer
from easydistill.verification.equality import Verifier
from easydistill.verification.numbers import parse_number
from easydistill.verification.plain import Verdict
from easydistill.verification.redaction import REDACTED, mentions, redact

PROMPT = "cot_hint"
_KINDS_OF_PROBLEMS = {"truncated": "truncated", "empty_content": "no_answer", "null_content": "no_answer"}


class TriesConfig(OperatorConfig):
    """How a student's answers are sampled and read."""

    student_samples: PositiveInt = 4
    """Answers of the student per problem, without a chain of thought and again with each chain shown."""
    truncated_are_wrong: bool = False
    """Count a truncated answer whose last number is wrong as a wrong answer."""
    boxed: bool = True
    """Ask for final answers in \\boxed{}."""
    strategies: tuple[Strategy, ...] = DEFAULT_STRATEGIES
    """Where to look for final answers, in this order."""


@dataclass(frozen=True)
class Chain:
    """A problem with a chain of thought whose final answer equals the known answer."""

    row: Sample
    known: str

    @property
    def redacted(self) -> str:
        return redact(thought_of(self.row), self.known)


@dataclass(frozen=True)
class Tries:
    """The outcomes of a student's tries at one problem."""

    kinds: Counter[str]
    """How many were `right`, `wrong`, `unsure`, `undecided`, `truncated`, `no_answer`."""
    wrong: tuple[Message, ...]
    """The distinct wrong answers."""
    cut: frozenset[str] = frozenset()
    """The texts of those that were cut off."""

    @property
    def asked(self) -> int:
        return self.kinds.total()

    @property
    def right(self) -> int:
        return self.kinds["right"]

    @property
    def rate(self) -> float:
        return self.right / self.asked


def try_alone(config: TriesConfig, verifier: Verifier, chains: Sequence[Chain]) -> Steps[list[Tries | Unusable]]:
    """Have the student answer each problem without its chain."""
    replies = yield [
        Ask.of(chain.row.prompt_chat, "student", number) for chain in chains for number in range(config.student_samples)
    ]
    return _read(config, chains, replies, verifier)


def try_with_chain(
    config: TriesConfig, tools: Tools, verifier: Verifier, chains: Sequence[Chain]
) -> Steps[list[Tries | Unusable]]:
    """Have the student answer each problem with its chain shown, the final answer redacted."""
    asks: list[Ask] = []
    for chain in chains:
        text, (*before, last) = words_of(chain.row), chain.row.prompt
        shown = images_of(last)
        values: dict[str, Any] = {"instruction": tagged_text(last), "thought": chain.redacted, "redacted": REDACTED}
        values |= {"boxed": config.boxed, "images": len(shown)}
        asks += [
            with_images(tools.ask(PROMPT, text, role="student", index=number, before=before, **values), shown)
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
    verdicts = verify(pairs, verifier)
    kinds = [_kind(config, *item) for item in zip(replies, known, found, verdicts, strict=True)]
    parts = [slice(start, start + config.student_samples) for start in range(0, len(replies), config.student_samples)]
    return [_tries(kinds[part], replies[part]) for part in parts]


def _kind(
    config: TriesConfig, reply: Reply, known: str, found: Found | None, verdict: Verdict | None
) -> str | Unusable:
    if reply.problem is not None:
        kind = _KINDS_OF_PROBLEMS.get(reply.problem[0])
        return Unusable(*reply.problem, reply) if kind is None else kind
    outcome = None if verdict is None else verdict.outcome
    if reply.finish_reason == "length" and not (config.truncated_are_wrong and outcome == "different"):
        return "truncated"
    if found is None:
        return "no_answer"
    if outcome == "different":
        return "wrong" if certainly_wrong(reply.text or "", found, known) else "unsure"
    return "right" if outcome == "equal" else "undecided"


def certainly_wrong(text: str, found: Found, known: str) -> bool:
    """Whether a final answer that was verified different from the known one is certainly wrong, not just misread.

    "The answer is is 5", "the answer is five" and a last number that only continues the sentence compare as different
    from 5, but may be right. So an answer is not certainly wrong if it mentions the known answer, or if the text may
    state the known answer after it, or anywhere if the answer is just the text's last number. If the known answer is a
    number, the answer must be one too; otherwise it must be boxed or the letter of a choice.
    """
    if mentions(text if found.strategy == "last_number" else found.text, known) or may_say_later(text, found, known):
        return False
    if parse_number(known) is not None:
        return parse_number(found.text) is not None
    return found.strategy == "boxed" or len(found.text) == len(known) == 1


def _tries(kinds: Sequence[str | Unusable], replies: Sequence[Reply]) -> Tries | Unusable:
    """The outcomes of one problem; the first request that failed, if any did."""
    failed = next((kind for kind in kinds if isinstance(kind, Unusable)), None)
    if failed is not None:
        return failed
    wrong: dict[str, Message] = {}
    cut: set[str] = set()
    for kind, reply in zip(kinds, replies, strict=True):
        if kind == "wrong":
            text = (reply.text or "").strip()
            if text not in wrong and reply.finish_reason == CUT:
                cut.add(text)
            wrong.setdefault(text, answer_message(text, reply.reasoning, reply.tool_calls))
    return Tries(Counter(kind for kind in kinds if isinstance(kind, str)), tuple(wrong.values()), frozenset(cut))
