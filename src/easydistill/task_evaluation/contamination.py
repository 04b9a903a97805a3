"""Training rows that contain an evaluated problem, counted. Nothing is dropped here: the student has learned already.

The search is that of the operator `decontaminate`: equal texts, and shared runs of tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from easydistill.contracts.task import Problem
from easydistill.data.messages import text_of
from easydistill.data.reading import read_rows
from easydistill.data.row_files.identity import hash_rows
from easydistill.engine.checks import unreadable_rows
from easydistill.errors import ConfigIssue, DataError, MissingExtra
from easydistill.synthesis.operators.decontaminate import BenchmarkProblem, Benchmarks, texts_of
from easydistill.task_evaluation.config import ContaminationConfig
from easydistill.task_evaluation.exams import Exam

EXAMPLES = 5
"""Contaminated rows that are kept with the problem they contain, for each task."""


def contamination_issues(config: ContaminationConfig) -> list[ConfigIssue]:
    """Files of training rows that cannot be read."""
    files = enumerate(config.data)
    return [issue for number, path in files for issue in unreadable_rows(f"contamination.data.{number}", path)]


def contamination_identity(config: ContaminationConfig) -> dict[str, Any]:
    """Depends on the rows, not on where they lie."""
    return {**config.identity(), "data": [_hash(path) for path in config.data]}


def _hash(path: str) -> str | None:
    try:
        return hash_rows(path)
    except (DataError, MissingExtra):
        return None


def problems_in(exam: Exam) -> Iterator[BenchmarkProblem]:
    """What is looked for in rows: the texts of a task's problems.

    Raises:
        DataError: the task's rows cannot be read.
    """
    for problem in exam.problems():
        yield BenchmarkProblem(f"{exam.name} {problem.id}", problem.text or _last(problem))


def _last(problem: Problem) -> str:
    return text_of(problem.messages[-1])


def contaminated(config: ContaminationConfig, exams: Sequence[Exam]) -> dict[str, Any]:
    """How many training rows contain a problem of each task, and which.

    A row may be counted for several tasks.

    Raises:
        DataError: the rows cannot be read.
    """
    indexes = {}
    for exam in exams:
        indexes[exam.name] = Benchmarks(problems_in(exam), words=config.words, characters=config.characters)
    counts: dict[str, Counter[str]] = {exam.name: Counter() for exam in exams}
    examples: dict[str, list[dict[str, str]]] = {exam.name: [] for exam in exams}
    rows = unread = 0
    for path in config.data:
        found = read_rows(path, labelled=None)
        unread += len(found.rejected)
        for sample in found.samples:
            rows += 1
            for name, index in indexes.items():
                hit = next(filter(None, map(index.find, texts_of(sample))), None)
                if hit is None:
                    continue
                counts[name][hit.reason] += 1
                if len(examples[name]) < EXAMPLES:
                    examples[name].append({"row": sample.id, "detail": hit.detail})
    return {
        "rows": rows,
        "unread": unread,
        "tasks": {name: {"rows": found.total(), **found, "examples": examples[name]} for name, found in counts.items()},
    }
