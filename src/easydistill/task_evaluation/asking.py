"""One model answers the questions of tasks, from the journal where it has done so before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from easydistill.asking.answers import answer_all, author_of, journalled_outcome, spending
from easydistill.asking.model import AskedModel
from easydistill.contracts.operator import Ask
from easydistill.contracts.task import Reply
from easydistill.contracts.teacher import Completion, Failure, Teacher
from easydistill.data.answers import split_thoughts
from easydistill.data.journal import Journal
from easydistill.data.messages import Message
from easydistill.data.records import CUT, Rejection
from easydistill.engine.stage import StageContext
from easydistill.errors import DataError
from easydistill.rewards._text import after_thoughts
from easydistill.task_evaluation.config import EvaluatedModel
from easydistill.task_evaluation.models import asked


@dataclass(frozen=True)
class Answered:
    """What came of one question."""

    reply: Reply
    key: str
    tokens: int = 0
    thoughts: str = ""
    failure: Failure | None = None
    """Why there is no reply; it then counts as an empty one."""


class ModelAsker:
    """Asks one model; it is loaded when it is first needed, once for each way of sampling.

    Args:
        name: the model's, for progress and errors.
    """

    def __init__(self, name: str, model: EvaluatedModel, journal: Journal, context: StageContext) -> None:
        self._name, self._model = name, model
        self._journal, self._context = journal, context
        self._open: tuple[dict[str, Any], AskedModel, Teacher] | None = None
        self._spent: dict[str, Any] = {}
        self.author = ""
        """What the answers in the journal are marked with, once any were asked for; models of one server share it."""
        self.tokens = {"prompt": 0, "completion": 0}
        self._counted: set[str] = set()

    def __enter__(self) -> ModelAsker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def answer(
        self, task: str, sampling: Mapping[str, Any], questions: Sequence[tuple[tuple[Message, ...], int]]
    ) -> list[Answered]:
        """The replies to (messages, number of the sample), in order.

        Raises:
            DataError: some requests failed for reasons that may pass: scores without them would be wrong.
        """
        if not questions:
            return []
        model, teacher = self._teacher(sampling)
        identity = teacher.identity()
        self.author = author_of(teacher)
        asks = [Ask(messages, index=index) for messages, index in questions]
        requests = [model.request(ask, identity) for ask in asks]
        unique = {request.key: request for request in requests}
        answer_all(teacher, list(unique.values()), self._journal, self._context, f"{self._name}: {task}")
        self._context.stop.raise_if_requested()
        self._spent = spending(teacher)
        found = [self._read(request.key) for request in requests]
        self._refuse_passing(task, found)
        return found

    def _refuse_passing(self, task: str, found: Sequence[Answered]) -> None:
        passing = [item.failure for item in found if item.failure is not None and item.failure.passing]
        if passing:
            problem = f"{self._name}: {len(passing)} of {len(found)} requests of {task} got no reply"
            why = f"{passing[0].reason}: {passing[0].detail}"
            raise DataError(f"{problem}, e.g. {why}\n    → run the same command again: only these are asked again")

    def _teacher(self, sampling: Mapping[str, Any]) -> tuple[AskedModel, Teacher]:
        wanted = dict(sampling)
        if self._open is None or self._open[0] != wanted:
            self._close()
            model = asked(self._model, wanted)
            self._open = (wanted, model, model.plan.make(self._context))
        return self._open[1], self._open[2]

    def _read(self, key: str) -> Answered:
        outcome = journalled_outcome(self._journal, key)
        if isinstance(outcome, Failure):
            return Answered(Reply(""), key, failure=outcome)
        if key not in self._counted:
            self._counted.add(key)
            self.tokens["prompt"] += outcome.prompt_tokens
            self.tokens["completion"] += outcome.completion_tokens
        return read_reply(outcome)

    def spent(self) -> dict[str, Any]:
        """What the answers cost, if the backend counts it: those of all models of its author."""
        return self._spent

    def _close(self) -> None:
        if self._open is not None:
            self._open[2].close()
            self._open = None


def read_reply(completion: Completion) -> Answered:
    """A completion as it is scored: without its thoughts."""
    text = completion.text or ""
    thoughts = completion.reasoning or ""
    if not thoughts:
        found, text = split_thoughts(text)
        thoughts = found or ""
    # Thoughts in other places than the beginning.
    reply = Reply(_writable(after_thoughts(text)), cut=completion.finish_reason == CUT)
    return Answered(reply, completion.key, completion.completion_tokens, _writable(thoughts))


def _writable(text: str) -> str:
    """Without halves of surrogate pairs, which servers may send and no file takes."""
    return text.encode("utf-8", "replace").decode()


def rejection(model: str, task: str, problem: str, stage: str, answered: Answered) -> Rejection:
    """A failed request as a rejected row, so that the report shows it and `retry` finds it."""
    failure = answered.failure
    assert failure is not None
    row = Rejection(f"{model}:{task}:{problem}", stage, failure.reason, failure.detail, failure.attempts, failure.raw)
    return replace(row, requests=(answered.key,))
