"""A task of the job `evaluate` that is a plain function of a reply and its row:

    def exact(reply, row): return reply.strip() == row["answer"]

The model is asked the row's prompt as the task `custom` reads it. The function returns a number from 0 to 1, or a bool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from easydistill.config.plain_functions import PlainFunction
from easydistill.contracts.task import Problem, Reply, Score, ScoringContext, TaskConfig
from easydistill.plain_files import PlainFile, PlainFileError, Reference
from easydistill.tasks._rows import row_id
from easydistill.tasks.custom import prompt_of

EXAMPLE = "def {name}(reply, row): return reply.strip() == row['answer']"
_GIVEN = ("reply", "row")


def module_of(call: Callable[..., Any], file: PlainFile, reference: Reference) -> ModuleType:
    """The task that a function is.

    Raises:
        PlainFileError: it cannot be called as a task.
    """
    function = PlainFunction(call, file, reference)
    function.check_named(_GIVEN)
    if "reply" not in function.given:
        raise PlainFileError("a task has a parameter `reply`, and this function has none")
    return function.module(
        Config=function.config(TaskConfig),
        problem=problem,
        scorer=lambda config, context: FunctionScorer(function, config, context),
    )


def problem(config: TaskConfig, row: Mapping[str, Any], number: int) -> Problem:
    """The row's prompt, with all of its fields for the function."""
    messages, text = prompt_of(row)
    return Problem(row_id(row, number, "id"), messages, dict(row), str(row.get("answer") or ""), text)


class FunctionScorer:
    """The function, with its settings, as a `Scorer`."""

    def __init__(self, function: PlainFunction, config: TaskConfig, context: ScoringContext) -> None:
        self._function, self._settings = function, function.chosen(config)

    def __call__(self, replies: Sequence[tuple[Problem, Reply]]) -> list[Score]:
        """
        Raises:
            FunctionFailed: the function has, or it returned something else than a number from 0 to 1.
        """
        return [self._score(problem, reply) for problem, reply in replies]

    def _score(self, problem: Problem, reply: Reply) -> Score:
        values = {"reply": reply.text, "row": dict(problem.fields)}
        with self._function.running():
            value = float(self._function.call(**self._function.taken(values), **self._settings))
        if not 0 <= value <= 1:
            raise self._function.wrong(f"returned {value}, and a score is a number from 0 to 1")
        return Score(value, reply.text)

    def close(self) -> None:
        """Nothing to release."""
