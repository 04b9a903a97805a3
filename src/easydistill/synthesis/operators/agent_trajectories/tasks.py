"""What is played: rows as tasks, with their tools checked, the user's goal and what holds in the tools' world."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from easydistill.data.messages import Message, Tool
from easydistill.data.reading.calls import tools_of
from easydistill.data.records import Sample
from easydistill.data.row_files import MalformedRow
from easydistill.errors import DataError
from easydistill.synthesis.operators.agent_trajectories.calls import ToolChecks
from easydistill.synthesis.operators.agent_trajectories.configs import Config
from easydistill.synthesis.replies import Unusable
from easydistill.synthesis.text import prompt_text

GOAL, ENVIRONMENT, RUBRIC = "goal", "environment", "rubric"
"""Fields of a row: what the user wants beyond its first message, facts that the tools know, criteria of the judge."""


@dataclass(frozen=True)
class Task:
    """A row to be played."""

    row: Sample
    """With its tools."""
    checks: ToolChecks
    opening: tuple[Message, ...]
    """The messages that the assistant is shown first."""
    goal: str
    """What the user wants to reach, which the assistant is not shown."""
    environment: Any
    """What the row says of the tools' world; None if nothing."""
    criteria: Mapping[str, str]
    """The row's own criteria, by name; empty if it has none."""

    @property
    def environment_text(self) -> str:
        return "" if self.environment is None else _text(self.environment)


def task_of(config: Config, row: Sample, definitions: Sequence[Tool]) -> Task:
    """The task of a row.

    Raises:
        Unusable: its tools, its messages or its criteria are not fit for it.
    """
    row = row if row.tools else replace(row, tools=tuple(definitions))
    checks = ToolChecks(row.tools)
    said, goal = row.prompt, row.meta.get(GOAL)
    if goal is not None and not isinstance(goal, str):
        raise Unusable("bad_task", f"the row's `{GOAL}` is a {type(goal).__name__}, not a text")
    if config.user_opens:
        if said[-1]["role"] != "user":
            raise Unusable("bad_task", "the row does not end with a message of the user, which would be the goal")
        wanted, said = prompt_text(replace(row, messages=said[-1:])), said[:-1]
        goal = f"{wanted}\n\n{goal}" if goal else wanted
    return Task(row, checks, said, goal or prompt_text(row), row.meta.get(ENVIRONMENT), _criteria(row.meta.get(RUBRIC)))


def _criteria(given: Any) -> dict[str, str]:
    """A row's criteria: a list of texts, or texts by name."""
    if not given:
        return {}
    texts = list(given.values()) if isinstance(given, Mapping) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise Unusable("bad_task", f"the row's `{RUBRIC}` is neither a list of texts nor an object of them")
    return numbered(texts)


def numbered(texts: Sequence[str]) -> dict[str, str]:
    """Criteria under names that every form of reply can hold."""
    return {f"criterion_{number}": text.strip() for number, text in enumerate(texts, start=1)}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)


def read_definitions(path: str | None) -> tuple[Tool, ...]:
    """The tools of `synthesis.definitions`.

    Raises:
        DataError: the file holds something else.
    """
    if path is None:
        return ()
    try:
        found = tools_of(json.loads(Path(path).read_text(encoding="utf-8")), "definitions")
    except (OSError, ValueError, MalformedRow) as error:
        hint = 'write a list of {"type": "function", "function": {"name": …, "parameters": {…}}}'
        raise DataError(f"{path}: {error}\n    → {hint}") from None
    if not found:
        raise DataError(f"{path}: there are no tools in it\n    → remove synthesis.definitions, or write some")
    return found
