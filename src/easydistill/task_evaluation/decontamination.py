"""Benchmarks that rows are kept clear of: files of problems, and tasks as the job `evaluate` names them.

The search is that of the operator `decontaminate`; of a task, what models are asked is looked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from pydantic import field_validator, model_validator

from easydistill.config.base import NonEmptyStr, PositiveInt, Section, Unfit
from easydistill.contracts.task import TaskConfig
from easydistill.data.row_files.identity import hash_rows
from easydistill.engine.checks import unreadable_rows
from easydistill.errors import ConfigIssue, DataError, MissingExtra
from easydistill.synthesis.operators.decontaminate import BOILERPLATE, BenchmarkProblem, Benchmarks, problems_of
from easydistill.task_evaluation.config import Task
from easydistill.task_evaluation.contamination import problems_in
from easydistill.task_evaluation.exams import exam_of
from easydistill.tasks import TASKS

_PERMISSION = "allow_execution"
"""Field of tasks whose scores need programs to be run."""


class BenchmarksConfig(Section):
    """Benchmarks, and how much overlap counts as contamination."""

    benchmarks: list[NonEmptyStr] = []  # noqa: RUF012 (pydantic copies it)
    """Files of problems, in all that `dataset.instruction_path` may be: any rows that can be trained on, or rows with
    `question` or `prompt` as in GSM8K, HumanEval and IFEval."""
    tasks: list[Task] = []  # noqa: RUF012 (pydantic copies it)
    """Tasks as in the job `evaluate`, such as `{"task": "gsm8k", "data": "gsm8k_test.jsonl"}`."""
    words: PositiveInt = 13
    """How many words in a row must be the same to count as overlap, in scripts with spaces."""
    characters: PositiveInt = 21
    """The same in scripts without spaces."""
    boilerplate: PositiveInt = BOILERPLATE
    """A run that occurs in more problems than this is a common phrase and is ignored."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _run_nothing(cls, value: Any) -> Any:
        """Problems are only read here, so tasks that run programs need no permission."""
        if not isinstance(value, list):
            return value
        return [{_PERMISSION: True, **item} if _asks_permission(item) else item for item in value]

    @model_validator(mode="after")
    def _names_some(self) -> BenchmarksConfig:
        if not self.benchmarks and not self.tasks:
            raise Unfit("no benchmark is named", 'set "benchmarks": ["test.jsonl"] or "tasks": [{"task": …}]')
        return self

    def identity(self) -> dict[str, Any]:
        """Depends on the benchmarks' rows, not on where they lie."""
        found = super().identity()
        if self.benchmarks:
            found["benchmarks"] = [_hash(path) for path in self.benchmarks]
        if self.tasks:
            found["tasks"] = [exam_of(task).identity() for task in self.tasks]
        return found

    def row_paths(self, where: str) -> Iterator[tuple[str, str]]:
        """(key, path) of the files of problems; `where` is the section's path."""
        for number, path in enumerate(self.benchmarks):
            yield f"{where}.benchmarks.{number}", path
        for number, task in enumerate(self.tasks):
            if isinstance(task, TaskConfig):
                yield f"{where}.tasks.{number}.data", task.data

    def issues(self, where: str) -> list[ConfigIssue]:
        """Benchmarks that cannot be read."""
        found: list[ConfigIssue] = []
        for number, path in enumerate(self.benchmarks):
            found += unreadable_rows(f"{where}.benchmarks.{number}", path)
        for number, task in enumerate(self.tasks):
            key = f"{where}.tasks.{number}"
            ours = isinstance(task, TaskConfig)
            found += unreadable_rows(f"{key}.data", task.data) if ours else exam_of(task).preflight(key)
        return found

    def index(self) -> Benchmarks:
        """All problems, ready to be looked for.

        Raises:
            DataError: a benchmark cannot be read whole.
        """
        of_tasks: Iterator[BenchmarkProblem] = chain.from_iterable(problems_in(exam_of(task)) for task in self.tasks)
        problems = chain(problems_of(self.benchmarks), of_tasks)
        return Benchmarks(problems, words=self.words, characters=self.characters, boilerplate=self.boilerplate)

    @property
    def names(self) -> list[str]:
        """What the benchmarks are called: files by their names, tasks by theirs."""
        files = [path.rstrip("/").rpartition("/")[2] for path in self.benchmarks]
        return [*files, *(task.shown_name for task in self.tasks)]


def _asks_permission(item: Any) -> bool:
    name = item.get("task") if isinstance(item, dict) else None
    return name in TASKS.names() and _PERMISSION in TASKS.module(name).Config.model_fields


def _hash(path: str) -> str | None:
    """Hash of a benchmark's rows; None where there are none, which `validate` tells."""
    try:
        return hash_rows(path)
    except (DataError, MissingExtra):
        return None
