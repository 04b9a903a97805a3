"""A task as it is taken: rows → problems → questions → replies → scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType
from typing import Any, Protocol

from easydistill.contracts.task import Problem, SampledTask, Score, Scorer, ScoringContext, TaskConfig
from easydistill.data.messages import Message, text_of
from easydistill.data.reading.keys import MEDIA
from easydistill.data.reading.values import is_given
from easydistill.data.records import content_hash
from easydistill.data.row_files import BrokenRow, MalformedRow, has_lone_surrogates, rows_of
from easydistill.data.row_files.identity import hash_rows
from easydistill.engine.checks import unreadable_rows
from easydistill.errors import ConfigIssue, DataError, MissingExtra
from easydistill.task_evaluation.asking import Answered
from easydistill.task_evaluation.config import LmEvalConfig
from easydistill.tasks import TASKS

Questions = Sequence[tuple[tuple[Message, ...], int]]
"""Messages, and the number of the sample."""
Answer = Callable[[Mapping[str, Any], Questions], list[Answered]]
"""Has one model answer questions; its arguments are the sampling and the questions."""


@dataclass(frozen=True)
class Taken:
    """One reply to one problem, and what it is worth."""

    problem: Problem
    sample: int
    answered: Answered
    score: Score


class Exam(Protocol):
    """A task, with its rows."""

    @property
    def name(self) -> str:
        """Its name in scores and report."""

    @property
    def config(self) -> SampledTask:
        """Its section."""

    def identity(self) -> dict[str, Any]:
        """Everything that can change its questions and scores, as JSON."""

    def preflight(self, where: str) -> list[ConfigIssue]:
        """Problems that can be found cheaply; `where` is the section's path."""

    def sampling(self) -> dict[str, Any]:
        """How replies are sampled, as keys of an `inference` section; of an exam that reads it from elsewhere, once its
        problems are known."""

    def problems(self) -> Sequence[Problem]:
        """What models are asked.

        Raises:
            DataError: the rows cannot be read.
        """

    def take(self, answer: Answer, scorer: Scorer | None) -> list[Taken]:
        """Have a model answer all problems, and score its replies. In order of problems, then samples."""

    def scorer(self, context: ScoringContext) -> Scorer | None:
        """What scores the replies; None for an exam that does so itself."""

    def notes(self) -> list[str]:
        """What one has to know to compare its scores with others'."""


def exam_of(config: SampledTask) -> Exam:
    """The exam of a section of `tasks`."""
    if isinstance(config, LmEvalConfig):
        from easydistill.task_evaluation.lm_eval_exam import LmEvalExam

        return LmEvalExam(config)
    assert isinstance(config, TaskConfig)
    return OurExam(config, TASKS.module(config.task))


def prompt_hash(problems: Sequence[Problem]) -> str:
    """A hash of all that models are asked."""
    return content_hash([[problem.id, list(problem.messages)] for problem in problems])[:16]


class OurExam:
    """A task of the registry."""

    def __init__(self, config: TaskConfig, module: ModuleType) -> None:
        self.config = config
        self._module: Any = module

    @property
    def name(self) -> str:
        return self.config.shown_name

    def identity(self) -> dict[str, Any]:
        return {
            **self.config.identity(),
            "data": _hash(self.config.data),
            **({"shots_data": _hash(self.config.shots_data)} if self.config.shots_data else {}),
        }

    def preflight(self, where: str) -> list[ConfigIssue]:
        found = unreadable_rows(f"{where}.data", self.config.data)
        found += unreadable_rows(f"{where}.shots_data", self.config.shots_data)
        found += self._module.issues(self.config)
        if not found and self.config.shots and self._shots_refused():
            problem = f"{self.config.task} has no worked examples"
            found.append(ConfigIssue("config", f"{where}.shots", problem, "remove shots and shots_data"))
        return found

    def _shots_refused(self) -> bool:
        from easydistill.contracts.task import TaskDefaults

        return self._module.demonstration is TaskDefaults.demonstration

    def sampling(self) -> dict[str, Any]:
        return self.config.sampling()

    def problems(self) -> Sequence[Problem]:
        return self._problems

    @cached_property
    def _problems(self) -> list[Problem]:
        shots = self._shots()
        shown = [problem.messages for problem, _ in shots]
        turns = tuple(message for problem, reply in shots for message in _turns(problem, reply))
        found: list[Problem] = []
        seen: Counter[str] = Counter()
        taken: set[str] = set()
        for problem, _ in self._read(self.config.data):
            if problem.messages in shown:
                continue
            if self.config.limit is not None and len(found) == self.config.limit:
                break
            identity = problem.id
            while identity in taken:
                seen[problem.id] += 1
                identity = f"{problem.id}#{seen[problem.id] + 1}"
            taken.add(identity)
            found.append(replace(problem, id=identity, messages=_after(turns, problem.messages)))
        if not found:
            raise DataError(f"{self.config.data}: there is no row to evaluate for {self.name}")
        return found

    def _shots(self) -> list[tuple[Problem, str]]:
        if self.config.shots_data is None:
            return []
        found: list[tuple[Problem, str]] = []
        for problem, row in self._read(self.config.shots_data):
            if len(found) == self.config.shots:
                return found
            found.append((problem, self._module.demonstration(self.config, row)))
        if len(found) < self.config.shots:
            raise DataError(f"{self.config.shots_data} has {len(found)} rows, and shots asks for {self.config.shots}")
        return found

    def _read(self, where: str) -> Iterator[tuple[Problem, Mapping[str, Any]]]:
        for number, row in enumerate(rows_of(where)):
            try:
                if isinstance(row, BrokenRow) or not isinstance(row, Mapping):
                    raise MalformedRow("it is not JSON, or not an object")
                if self._module.chosen(self.config, row):
                    problem = self._module.problem(self.config, row, number)
                    if any(has_lone_surrogates(text_of(message)) for message in problem.messages):
                        raise MalformedRow("a text has half of a surrogate pair")
                    if media := next((name for name in MEDIA if is_given(row.get(name))), None):
                        raise MalformedRow(f"{media!r} would not be shown to the models: tasks are of text alone")
                    yield problem, row
            except MalformedRow as why:
                # A benchmark without one of its problems would be another benchmark.
                raise DataError(f"{where}, row {number + 1}: not a row of {self.config.task}: {why}") from None

    def take(self, answer: Answer, scorer: Scorer | None) -> list[Taken]:
        assert scorer is not None
        asked = [(problem, sample) for problem in self._problems for sample in range(self.config.samples)]
        answered = answer(self.sampling(), [(problem.messages, sample) for problem, sample in asked])
        replies = [(problem, replied.reply) for (problem, _), replied in zip(asked, answered, strict=True)]
        scores = scorer(replies)
        return [
            Taken(problem, sample, replied, score)
            for (problem, sample), replied, score in zip(asked, answered, scores, strict=True)
        ]

    def scorer(self, context: ScoringContext) -> Scorer:
        made: Scorer = self._module.scorer(self.config, context)
        return made

    def notes(self) -> list[str]:
        notes: list[str] = self._module.notes(self.config)
        return notes


def _hash(where: str) -> str | None:
    """Hash of the rows; None where there are none, which `validate` tells."""
    try:
        return hash_rows(where)
    except (DataError, MissingExtra):
        return None


def _turns(problem: Problem, reply: str) -> tuple[Message, ...]:
    """A worked example: the question's own turns, without a system prompt, and the reply."""
    asked = tuple(message for message in problem.messages if message["role"] != "system")
    return (*asked, {"role": "assistant", "content": reply})


def _after(turns: tuple[Message, ...], messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages with worked examples before them, behind the system prompt."""
    if messages[0]["role"] == "system":
        return (messages[0], *turns, *messages[1:])
    return (*turns, *messages)
