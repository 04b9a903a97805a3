"""Chains of thought for instructions, with or without known answers (paper, 2.1.1).

The teacher tries each problem `num_samples` times. If its answer is known, the final answer of every try is checked,
wrong tries are rejected, and `meta["pass_rate"]` is the share of right ones. Rows hold the problem itself, not the
prompt with which the teacher was asked. The teacher is shown the images of a problem, and rows keep them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Literal

from easydistill.config.base import PositiveInt
from easydistill.contracts.operator import Ask, OperatorConfig, Reply, Result, Steps
from easydistill.data.messages import images_of, tagged_text
from easydistill.data.records import Sample
from easydistill.synthesis.chains import known_answer, length_of, verify
from easydistill.synthesis.images import with_images, words_of
from easydistill.synthesis.replies import Unusable, message_of, rejection, text_of
from easydistill.synthesis.tools import Tools
from easydistill.verification.answers import DEFAULT_STRATEGIES, Strategy, find_answer
from easydistill.verification.plain import Verdict

STAGE = "cot_generation"
SUMMARY = "A chain of thought for every problem, checked where the answer is known."
PROMPTS = ("cot_generation",)
REASONS = ("truncated", "empty_content", "answer_unknown", "no_final_answer", "undecided", "wrong_answer", "not_chosen")
LABELLED = None
MAKES_PROMPTS = False
SHOWS_IMAGES = ("teacher",)


class Config(OperatorConfig):
    """How often a problem is tried and which tries are kept."""

    identity_name = "operator.cot_generation"

    num_samples: PositiveInt = 1
    """Tries per problem."""
    keep: Literal["first", "shortest", "all"] = "first"
    """Which of a problem's accepted tries become rows."""
    verify: Literal["known", "required", "never"] = "known"
    """Check final answers if the right one is known; `required` rejects problems without a known answer."""
    show_answer: bool = False
    """Show the teacher the known answer, so that it only has to find the reasoning."""
    boxed: bool = True
    """Ask for the final answer in \\boxed{}."""
    strategies: tuple[Strategy, ...] = DEFAULT_STRATEGIES
    """Where to look for final answers, in this order."""


def run(config: Config, rows: Sequence[Sample], tools: Tools) -> Steps[Result]:
    """Ask the teacher for chains of thought, and keep those that pass."""
    known = [known_answer(row, config.strategies) for row in rows]
    asked = [
        (row, answer, number)
        for (row, answer), number in product(zip(rows, known, strict=True), range(config.num_samples))
    ]
    replies = yield [
        question(row, tools, boxed=config.boxed, answer=answer if config.show_answer else None, number=number)
        for row, answer, number in asked
    ]
    tries = [_Try(*item, reply, config) for item, reply in zip(asked, replies, strict=True)]
    for each, verdict in zip(tries, verify([each.pair for each in tries]), strict=True):
        each.verdict = verdict
    result = Result(entered=len(tries))
    for start in range(0, len(tries), config.num_samples):
        _choose(config, tries[start : start + config.num_samples], result)
    outcomes = Counter(each.verdict.outcome for each in tries if each.verdict is not None)
    result.facts = {
        "problems": len(rows),
        "problems_solved": len({row.meta["source"] for row in result.accepted}),
        "answers_known": len(known) - known.count(None),
        "verified_right": outcomes["equal"],
        "verified_wrong": outcomes["different"],
        "undecided": outcomes["undecided"],
    }
    return result


def question(row: Sample, tools: Tools, *, boxed: bool, answer: str | None = None, number: int = 0) -> Ask:
    """The request for a chain of thought.

    Args:
        boxed: ask for the final answer in \\boxed{}.
        answer: the known answer, if it is to be shown.
        number: number of the try.
    """
    *before, last = row.prompt
    shown = images_of(last)
    values: dict[str, Any] = {"instruction": tagged_text(last), "answer": answer, "boxed": boxed, "images": len(shown)}
    return with_images(tools.ask(STAGE, words_of(row), index=number, before=before, **values), shown)


class _Try:
    """One try at a problem."""

    def __init__(self, row: Sample, known: str | None, number: int, reply: Reply, config: Config) -> None:
        self.row, self.number, self.reply = row, number, reply
        self.known = known if config.verify != "never" else None
        self.verdict: Verdict | None = None
        self.problem: Unusable | None = None
        self.found: str | None = None
        try:
            text = text_of(reply)
            found = find_answer(text, config.strategies)
            self.found = found.text if found is not None else None
            if config.verify == "required" and self.known is None:
                raise Unusable("answer_unknown", "the problem has no known answer to check against")
            if self.known is not None and found is None:
                raise Unusable("no_final_answer", "no final answer was found in the reply")
        except Unusable as problem:
            self.problem = problem

    @property
    def pair(self) -> tuple[str, str] | None:
        """The (known, found) answers, if there are both."""
        if self.problem is not None or self.known is None or self.found is None:
            return None
        return self.known, self.found

    def why_rejected(self) -> Unusable | None:
        """Why it is rejected; None if it passed every check."""
        if self.problem is not None or self.verdict is None or self.verdict.equal:
            return self.problem
        if self.verdict.outcome == "undecided":
            return Unusable("undecided", f"{self.found!r} against {self.known!r}: {self.verdict.reason}")
        return Unusable("wrong_answer", f"the answer is {self.found!r}, should be {self.known!r}")

    def identity(self, config: Config) -> str:
        return self.row.id if config.num_samples == 1 else f"{self.row.id}-{self.number + 1}"


def _choose(config: Config, tries: Sequence[_Try], result: Result) -> None:
    """Divide the tries at one problem into rows and rejections."""
    good = [each for each in tries if each.why_rejected() is None]
    kept = good
    if config.keep == "first":
        kept = good[:1]
    elif config.keep == "shortest":
        kept = sorted(good, key=lambda each: (length_of(each.reply.text or ""), each.number))[:1]
    rate = round(len(good) / len(tries), 4) if tries[0].known is not None else None
    for each in tries:
        problem = each.why_rejected()
        if problem is None and each not in kept:
            problem = Unusable("not_chosen", f"another try was kept ({config.keep})")
        if problem is None:
            result.accepted.append(_row(config, each, rate))
        else:
            result.rejected.append(rejection(each.identity(config), STAGE, problem, each.reply))


def _row(config: Config, made: _Try, rate: float | None) -> Sample:
    answer = message_of(made.reply)
    facts = {"source": made.row.id, "final_answer": made.found, "pass_rate": rate}
    meta = {**made.row.meta, "operator": STAGE, **{name: value for name, value in facts.items() if value is not None}}
    return replace(made.row, id=made.identity(config), messages=(*made.row.prompt, answer), meta=meta)
