"""Has the models of an operator answer its requests, from the journal where they have been answered already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from easydistill.asking.answers import answer_all, journalled_outcome, read_answer, received, spending
from easydistill.asking.model import AskedModel
from easydistill.contracts.operator import Ask, Reply, Role
from easydistill.contracts.teacher import Failure, GenerationRequest, Teacher
from easydistill.data.journal import Journal
from easydistill.data.messages import text_of
from easydistill.engine.stage import StageContext


class Asker:
    """Answers an operator's requests; each model is loaded when it is first needed."""

    def __init__(
        self,
        models: Mapping[Role, AskedModel],
        journal: Journal,
        context: StageContext,
    ) -> None:
        self._models = models
        self._journal = journal
        self._context = context
        self._teachers: dict[int, Teacher] = {}
        self._counted: set[str] = set()
        self._wave = 0
        self.tokens = {"prompt": 0, "completion": 0}

    def answer(self, asks: Sequence[Ask]) -> list[Reply]:
        """The replies, in the order of the requests."""
        self._wave += 1
        asked: list[tuple[str, AskedModel]] = []
        by_role: dict[Role, dict[str, GenerationRequest]] = {}
        identities = {role: self._teacher(role).identity() for role in {ask.role for ask in asks}}
        for ask in asks:
            model = self._models[ask.role]
            request = model.request(ask, identities[ask.role])
            by_role.setdefault(ask.role, {})[request.key] = request
            asked.append((request.key, model))
        for role, requests in by_role.items():
            title = f"Asking the {role}, round {self._wave}"
            answer_all(self._teacher(role), list(requests.values()), self._journal, self._context, title)
            self._context.stop.raise_if_requested()
        return [self._reply(key, model) for key, model in asked]

    def _teacher(self, role: Role) -> Teacher:
        model = self._models[role]
        if id(model) not in self._teachers:
            self._teachers[id(model)] = model.plan.make(self._context)
        return self._teachers[id(model)]

    def _reply(self, key: str, model: AskedModel) -> Reply:
        outcome = journalled_outcome(self._journal, key)
        if isinstance(outcome, Failure):
            return Reply(None, problem=(outcome.reason, outcome.detail), raw=outcome.raw, key=key)
        if key not in self._counted:
            self._counted.add(key)
            self.tokens["prompt"] += outcome.prompt_tokens
            self.tokens["completion"] += outcome.completion_tokens
        raw = received(outcome)
        answer = read_answer(outcome, model.inference.truncation, model.inference.thoughts)
        if isinstance(answer, tuple):
            return Reply(outcome.text, outcome.reasoning, outcome.finish_reason, answer, raw, key)
        calls = tuple(answer.get("tool_calls", ()))
        return Reply(
            text_of(answer), answer.get("reasoning_content"), outcome.finish_reason, None, raw, key, tool_calls=calls
        )

    def spent(self) -> dict[str, Any]:
        """Metrics of what the answers cost, by role; empty if the model's backend does not count it."""
        found: dict[str, Any] = {}
        for role, model in self._models.items():
            if id(model) in self._teachers:
                found.update({f"spent_by_{role}": value for value in spending(self._teachers[id(model)]).values()})
        return found

    def close(self) -> None:
        for teacher in self._teachers.values():
            teacher.close()
