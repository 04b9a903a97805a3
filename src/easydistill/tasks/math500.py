"""MATH-500 (Hendrycks et al. 2021; the 500 problems of Lightman et al. 2023): competition mathematics in LaTeX.

Rows have `problem`, and `answer` or a `solution` whose box holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from easydistill.config.base import PositiveInt
from easydistill.contracts.task import Problem, Scorer, ScoringContext, TaskConfig
from easydistill.errors import ConfigIssue
from easydistill.tasks._math import math_issues, math_problem, math_scorer
from easydistill.tasks._rows import text_field


class Config(TaskConfig):
    """MATH-500: competition mathematics."""

    identity_name = "task.math500"

    task: Literal["math500"]
    """Which task this is."""
    max_new_tokens: PositiveInt = 2048
    """Longest reply, in the model's tokens; models that reason at length need 16384 or more."""


def problem(config: Config, row: Mapping[str, Any], number: int) -> Problem:
    return math_problem(row, number, ("problem", "question"), ("answer", "solution"), ("unique_id", "id"))


def demonstration(config: Config, row: Mapping[str, Any]) -> str:
    return text_field(row, "solution")


def scorer(config: Config, context: ScoringContext) -> Scorer:
    return math_scorer()


def issues(config: Config) -> list[ConfigIssue]:
    return math_issues()
