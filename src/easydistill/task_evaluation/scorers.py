"""The scorers of a run's exams, and the judge that some of them ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from easydistill.asking.answers import count_earlier, spending
from easydistill.contracts.task import Scorer, ScoringContext
from easydistill.contracts.teacher import Teacher
from easydistill.data.journal import Journal
from easydistill.engine.stage import StageContext
from easydistill.task_evaluation.config import EvaluatedModel
from easydistill.task_evaluation.exams import Exam
from easydistill.task_evaluation.models import asked
from easydistill.tasks.custom import judge_journal


class Scorers:
    """The scorers of all exams, and the judge that some of them ask."""

    def __init__(self, exams: Sequence[Exam], judge: EvaluatedModel | None, context: StageContext) -> None:
        self._teacher: Teacher | None = None
        values: dict[str, Any] = {}
        if judge is not None:
            own = asked(judge, {"temperature": 0.0})
            self._teacher = own.plan.make(context)
            sampling, system = own.inference.sampling(), own.inference.system_prompt
            values = {"judge": self._teacher, "judge_sampling": sampling, "judge_system_prompt": system}
        self._made: dict[str, Scorer | None] = {}
        try:
            self._count_earlier(exams, context)
            scoring = ScoringContext(context.directory, redact=context.redactor.value, **values)
            for exam in exams:
                self._made[exam.name] = exam.scorer(scoring)
        except BaseException:
            self.close()
            raise

    def _count_earlier(self, exams: Sequence[Exam], context: StageContext) -> None:
        """Enter what the judge answered in earlier attempts into its ledger."""
        for exam in exams:
            path = context.directory / judge_journal(exam.name)
            if self._teacher is not None and path.is_file():
                with Journal(path) as journal:
                    count_earlier(self._teacher, journal)

    def spent(self) -> dict[str, Any]:
        """What the judge's answers cost, if its backend counts it."""
        return {} if self._teacher is None else spending(self._teacher)

    def of(self, exam: Exam) -> Scorer | None:
        return self._made[exam.name]

    def __enter__(self) -> Scorers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        for scorer in self._made.values():
            if scorer is not None:
                scorer.close()
        if self._teacher is not None:
            self._teacher.close()
