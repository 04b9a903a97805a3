"""GSM8K (Cobbe et al. 2021): grade-school word problems; the final number is compared.

Rows have `question` and `answer`, a worked solution that ends in `#### 18`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from easydistill.config.base import PositiveInt
from easydistill.contracts.task import Problem, Scorer, ScoringContext, TaskConfig
from easydistill.errors import ConfigIssue
from easydistill.tasks._math import math_issues, math_problem, math_scorer
from easydistill.tasks._rows import text_field

_CALCULATION = re.compile(r"<<[^<>]*>>")
"""The notes of a calculator in the data set's solutions."""


class Config(TaskConfig):
    """GSM8K: grade-school word problems."""

    identity_name = "task.gsm8k"

    task: Literal["gsm8k"]
    """Which task this is."""
    max_new_tokens: PositiveInt = 512
    """Longest reply, in the model's tokens. Longer ones are cut, scored as they are, and counted in the report."""


def problem(config: Config, row: Mapping[str, Any], number: int) -> Problem:
    return math_problem(row, number, ("question",), ("answer",), ("id",))


def demonstration(config: Config, row: Mapping[str, Any]) -> str:
    solution, _, answer = text_field(row, "answer").rpartition("####")
    return f"{_CALCULATION.sub('', solution).strip()}\n\n\\boxed{{{answer.strip()}}}"


def scorer(config: Config, context: ScoringContext) -> Scorer:
    return math_scorer()


def issues(config: Config) -> list[ConfigIssue]:
    return math_issues()
