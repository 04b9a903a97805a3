"""AIME: problems of the American Invitational Mathematics Examination, whose answers are integers from 0 to 999.

Rows have `problem` (or `question`) and `answer`. By convention several replies are sampled, and their mean is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from easydistill.config.base import NonNegativeFloat, PositiveInt, PositiveShare
from easydistill.contracts.task import Problem, Scorer, ScoringContext, TaskConfig
from easydistill.errors import ConfigIssue
from easydistill.tasks._math import math_issues, math_problem, math_scorer


class Config(TaskConfig):
    """AIME: competition mathematics with integer answers."""

    identity_name = "task.aime"

    task: Literal["aime"]
    """Which task this is."""
    max_new_tokens: PositiveInt = 16_384
    """Longest reply, in the model's tokens. Longer ones are cut, scored as they are, and counted in the report."""
    samples: PositiveInt = 8
    """Replies to each problem. The score, pass@1, is their mean."""
    temperature: NonNegativeFloat = 0.6
    """Sampling temperature; 0 is greedy."""
    top_p: PositiveShare | None = 0.95
    """Nucleus sampling, as in `inference`."""


def problem(config: Config, row: Mapping[str, Any], number: int) -> Problem:
    return math_problem(row, number, ("problem", "Problem", "question"), ("answer", "Answer"), ("id", "ID"))


def scorer(config: Config, context: ScoringContext) -> Scorer:
    return math_scorer()


def issues(config: Config) -> list[ConfigIssue]:
    return math_issues()
