"""The scorers of a run's exams, and the judge that some of them ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from easydistill.contracts.task import Scorer, ScoringContext
from easydistill.contracts.teacher import Teacher
from easydistill.engine.stage import StageContext
from easydistill.task_evaluation.config import EvaluatedModel
from easydistill.task_evaluation.exams import Exam
from easydistill.task_evaluation.models import asked


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
            for exam in exams:
                self._made[exam.name] = exam.scorer(ScoringContext(context.directory, **values))
        except BaseException:
            self.close()
            raise

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
