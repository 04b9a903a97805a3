"""What mathematics tasks share: how the question is put, and the comparison of final answers (see `rewards/verify.py`).

A reply that was cut off is scored by what it says: an answer before the cut counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from easydistill.contracts.task import Problem, Reply, Score, Scorer
from easydistill.data.row_files import MalformedRow
from easydistill.engine.checks import needs_extra
from easydistill.errors import ConfigIssue
from easydistill.rewards.verify import final_answer, known_answer
from easydistill.tasks._rows import asked, row_id, text_field
from easydistill.verification.answers import DEFAULT_STRATEGIES
from easydistill.verification.equality import Verifier

ANSWER = "answer"
"""Field of a problem with the known final answer."""
BOXED = "\n\nReason step by step, and put your final answer within \\boxed{}."
_SECONDS = 5.0


def math_issues() -> list[ConfigIssue]:
    """What comparing answers needs."""
    return needs_extra("synth", "math_verify", "sympy")


class MathScorer:
    """Compares final answers with the known ones."""

    def __init__(self, workers: int = 2) -> None:
        self._verifier = Verifier(workers, _SECONDS)

    def __call__(self, replies: Sequence[tuple[Problem, Reply]]) -> list[Score]:
        answers = [final_answer(reply.text, problem.fields[ANSWER], DEFAULT_STRATEGIES) for problem, reply in replies]
        pairs = [(problem.fields[ANSWER], answer) for (problem, _), answer in zip(replies, answers, strict=True)]
        verdicts = self._verifier.verify_many(pairs)
        return [
            Score(float(verdict.equal), answer, "" if verdict.equal else verdict.reason or _why(answer))
            for verdict, answer in zip(verdicts, answers, strict=True)
        ]

    def close(self) -> None:
        self._verifier.close()


def _why(answer: str) -> Literal["another answer", "no final answer"]:
    return "another answer" if answer else "no final answer"


def math_problem(
    row: Mapping[str, Any], number: int, questions: Sequence[str], answers: Sequence[str], ids: Sequence[str]
) -> Problem:
    """The problem of a row, by the names of its fields.

    Raises:
        MalformedRow: a field is missing, or the known answer cannot be compared with anything.
    """
    question = text_field(row, *questions)
    known = known_answer({ANSWER: text_field(row, *answers)}, ANSWER)
    if known is None:
        raise MalformedRow("the known answer cannot be compared with anything")
    return Problem(row_id(row, number, *ids), asked(question.strip() + BOXED), {ANSWER: known}, known, question)


def math_scorer() -> Scorer:
    return MathScorer()
