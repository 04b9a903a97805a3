"""Plays one chat: the teacher is the assistant, its calls are answered, and a model may be the user."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from easydistill.contracts.operator import Ask, Reply, Steps
from easydistill.data.messages import Message, ToolCall, as_context, call_text, tagged_text
from easydistill.synthesis.operators.agent_trajectories.configs import Config
from easydistill.synthesis.operators.agent_trajectories.results import Answered, ToolAnswers, error_text
from easydistill.synthesis.operators.agent_trajectories.tasks import Task
from easydistill.synthesis.replies import Unusable, fields_of, message_of
from easydistill.synthesis.tools import Tools

CONTINUE, SATISFIED, GIVES_UP = "continue", "satisfied", "gives_up"
"""What the mock user decides after each answer."""


class Play:
    """A chat as it is played.

    Attributes:
        messages: so far; the last one is the assistant's once `run` has ended.
        calls: those that were answered, with their results.
        invalid: how many calls were not valid.
        last: the reply that was received last.
    """

    def __init__(self, config: Config, tools: Tools, answers: ToolAnswers, task: Task, number: int) -> None:
        self._config, self._tools, self._answers = config, tools, answers
        self.task, self.number = task, number
        self.messages: list[Message] = list(task.opening)
        self.calls: list[Answered] = []
        self.invalid = 0
        self.last: Reply | None = None

    @property
    def turns(self) -> int:
        """Messages of the user."""
        return sum(message["role"] == "user" for message in self.messages)

    def run(self) -> Steps[None]:
        """Play to the end.

        Raises:
            Unusable: the chat cannot be kept.
        """
        if self._config.user_opens:
            yield from self._user_speaks()
        while True:
            calls = yield from self._assistant_speaks()
            if calls:
                yield from self._answer(calls)
            elif not self._config.mock_user or not (yield from self._user_speaks()):
                break
        if len(self.calls) < self._config.min_calls:
            raise Unusable("few_calls", f"{len(self.calls)} calls, at least {self._config.min_calls} are needed")

    def _assistant_speaks(self) -> Steps[Sequence[ToolCall]]:
        row = self.task.row
        (reply,) = yield [
            Ask(
                as_context(self.messages),
                "teacher",
                self.number,
                tools=row.tools,
                template_kwargs=row.template_kwargs,
            )
        ]
        self.last = reply
        said = message_of(reply)
        if calls := said.get("tool_calls"):
            # Servers' ids are random, and some give none. Nine letters and digits are what Mistral's templates take.
            made = sum(len(message.get("tool_calls", ())) for message in self.messages)
            said["tool_calls"] = [{**call, "id": f"call{made + at:05d}"} for at, call in enumerate(calls, start=1)]  # type: ignore[typeddict-item]
        self.messages.append(said)
        return said.get("tool_calls", ())

    def _answer(self, calls: Sequence[ToolCall]) -> Steps[None]:
        """Put the results of a message's calls behind it."""
        problems = [self.task.checks.problem(call) for call in calls]
        if any(problems):
            self._count_invalid([problem for problem in problems if problem])
            self.messages[-1]["weight"] = 0
        for call, problem in zip(calls, problems, strict=True):
            content = error_text(problem) if problem else ""
            if not problem:
                if len(self.calls) == self._config.max_calls:
                    raise Unusable("too_many_calls", f"it needs more than {self._config.max_calls} calls")
                answered = yield from self._answers.answer(self.task, self.number, self.calls, call)
                self.calls.append(answered)
                self.last, content = answered.reply or self.last, answered.content
            result: Message = {"role": "tool", "content": content, "tool_call_id": call["id"], "name": call["name"]}
            self.messages.append(result)

    def _count_invalid(self, problems: Sequence[str]) -> None:
        self.invalid += len(problems)
        replies = () if self.last is None else (self.last,)
        if self._config.invalid_calls == "reject":
            raise Unusable("invalid_call", problems[0], *replies)
        if self.invalid > self._config.max_invalid_calls:
            detail = f"{self.invalid} calls were invalid, the last one: {problems[-1]}"
            raise Unusable("invalid_call", detail, *replies)

    def _user_speaks(self) -> Steps[bool]:
        """The mock user's next message; False, without one, if it is satisfied.

        Raises:
            Unusable: it gives up, or still wants something after `max_turns` messages.
        """
        opens = self.messages == list(self.task.opening)
        (reply,) = yield [
            self._tools.ask(
                "mock_user",
                self.task.goal,
                wants=("decision", "message"),
                role="user",
                index=self.number,
                goal=self.task.goal,
                chat=spoken(self.messages),
                opens=opens,
                turns_left=self._config.max_turns - self.turns,
            )
        ]
        self.last = reply
        found = fields_of(reply, ("decision", "message"), self._config.reply)
        decision = found["decision"].strip(" .`\"'").casefold()
        if decision == GIVES_UP:
            raise Unusable("user_gave_up", found["message"][:300], reply)
        if decision not in (CONTINUE, SATISFIED) or (opens and decision == SATISFIED):
            expected = CONTINUE if opens else f"{CONTINUE}, {SATISFIED} or {GIVES_UP}"
            raise Unusable("malformed_reply", f"the user decides {decision[:60]!r}, not {expected}", reply)
        if decision == SATISFIED:
            return False
        if self.turns >= self._config.max_turns:
            raise Unusable("unfinished", f"after {self.turns} messages the user still wants something", reply)
        self.messages.append({"role": "user", "content": found["message"]})
        return True


def spoken(messages: Iterable[Message]) -> list[dict[str, str]]:
    """What user and assistant said to each other: `{"by": …, "text": …}`, without calls, results and thoughts."""
    said = [(message["role"], tagged_text(message)) for message in messages]
    return [{"by": role, "text": text} for role, text in said if role in ("user", "assistant") and text.strip()]


def transcript(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Everything in a chat but the thoughts, as `spoken`: calls are by `call`, their results by `tool`."""
    found: list[dict[str, Any]] = []
    for message in messages:
        if text := tagged_text(message).strip():
            found.append({"by": message["role"], "text": text})
        found += [{"by": "call", "text": call_text(call)} for call in message.get("tool_calls", ())]
    return found
