"""A teacher backend as a third party would bring it: one module and one entry point. It repeats what it is asked.

Every request is written to a file, and it gives out after a number of answers, so that a test can tell what a resumed
run asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from easydistill.config.base import PositiveInt
from easydistill.config.inference import InferenceConfig
from easydistill.contracts.teacher import Completion, GenerationRequest, RecordOutcomes, TeacherPlan
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.stage import StageContext
from easydistill.errors import ConfigIssue, TeacherError


class Config(InferenceConfig):
    """A teacher that repeats what it is asked."""

    needs_model: ClassVar[bool] = False
    runtime_only: ClassVar[frozenset[str]] = frozenset({"asked_path", "gives_out_after"})

    backend: Literal["echo"]
    """Repeats what it is asked."""
    repeats: PositiveInt = 1
    """How often a prompt is repeated in its answer."""
    asked_path: str
    """A file to which every prompt is added that is asked."""
    gives_out_after: PositiveInt | None = None
    """Answers after which no more are given."""


class EchoTeacher:
    def __init__(self, config: Config) -> None:
        self._config = config

    def identity(self) -> dict[str, Any]:
        return {"backend": "echo"}

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        done: Callable[[str], bool],
        record: RecordOutcomes,
        stop: StopSignal,
    ) -> None:
        answers = 0
        for request in requests:
            if stop.requested:
                return
            if done(request.key):
                continue
            if answers == self._config.gives_out_after:
                raise TeacherError(f"the echo is gone after {answers} answers")
            answers += 1
            text = request.messages[-1]["content"]
            with Path(self._config.asked_path).open("a", encoding="utf-8") as handle:
                handle.write(f"{text}\n")
            record([Completion(request.key, " ".join([text] * self._config.repeats), completion_tokens=1)])

    def close(self) -> None:
        pass


def plan(config: Config, model: str | None, template: str | None) -> TeacherPlan:
    def make(context: StageContext) -> EchoTeacher:
        return EchoTeacher(config)

    def preflight() -> list[ConfigIssue]:
        if Path(config.asked_path).parent.is_dir():
            return []
        return [ConfigIssue("config", "inference.asked_path", "there is no such directory")]

    return TeacherPlan(make, lambda: {"backend": "echo"}, preflight)
