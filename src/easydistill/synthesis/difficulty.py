"""How hard rows are for a student (TAPIR's model fitting difficulty, arXiv 2405.13448).

    gap = J(teacher) − J(student)

A judge scores both answers side by side, once in each order, and each answer's two scores are averaged, so that
position bias cancels out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from easydistill.contracts.operator import Ask, OperatorConfig, Reply, Steps
from easydistill.data.messages import said
from easydistill.data.records import Rejection, Sample
from easydistill.synthesis.images import ask_about
from easydistill.synthesis.replies import Unusable, answered, message_of, rejection, scores_of
from easydistill.synthesis.text import prompt_text
from easydistill.synthesis.tools import Tools

PROMPT = "answer_comparison"
SCORES = {"first": (1, 10), "second": (1, 10)}


@dataclass(frozen=True)
class Judged:
    """A row with the teacher's answer, and the judge's scores of both answers, 1 to 10."""

    row: Sample
    teacher: float
    student: float

    @property
    def gap(self) -> float:
        return self.teacher - self.student

    @property
    def scored_row(self) -> Sample:
        """The row with the scores in its `meta`."""
        scores = {"teacher_score": self.teacher, "student_score": self.student, "gap": self.gap}
        return replace(self.row, meta={**self.row.meta, **scores})


def judge_row(stage: str, config: OperatorConfig, row: Sample, tools: Tools) -> Steps[Judged | Rejection]:
    """Have one row answered by the student, and by the teacher if it has no answer, and both answers judged."""
    replies: list[Reply] = []
    try:
        if row.answer is None:
            replies = yield [Ask.of(row)]
            row = answered(row, replies[0])
        replies = yield [Ask.of(row.prompt_chat, "student")]
        teacher, student = said(row.messages[-1]), _student_text(replies[0])
        replies = yield [comparison(row, teacher, student, tools), comparison(row, student, teacher, tools)]
        one, other = (scores_of(reply, SCORES, config.reply) for reply in replies)
    except Unusable as problem:
        return rejection(row.id, stage, problem, *replies)
    return Judged(row, fmean((one["first"], other["second"])), fmean((one["second"], other["first"])))


def comparison(row: Sample, first: str, second: str, tools: Tools) -> Ask:
    """The request to the judge to score two answers, in this order."""
    text = prompt_text(row)
    return ask_about(tools, PROMPT, row, wants=SCORES, role="judge", instruction=text, first=first, second=second)


def _student_text(reply: Reply) -> str:
    """The student's answer, even if it is truncated or empty: the judge is to see what the student fails at."""
    if reply.problem is not None and reply.problem[0] == "empty_content":
        return ""
    return said(message_of(replace(reply, finish_reason=None)))


def gap_facts(judged: Sequence[Judged]) -> dict[str, Any]:
    """Mean and histogram of the gaps, and the judge's mean scores."""
    if not judged:
        return {"mean": None, "histogram": {}}
    counts = Counter(item.gap for item in judged)
    return {
        "mean": round(fmean(item.gap for item in judged), 4),
        "histogram": {str(gap): count for gap, count in sorted(counts.items())},
        "teacher_score": round(fmean(item.teacher for item in judged), 4),
        "student_score": round(fmean(item.student for item in judged), 4),
    }
