"""Tasks of the job `evaluate`: one module each, with its config, what models are asked, and how replies are scored.

A module declares the members of `contracts.task.TaskModule`. Third parties add tasks through the entry-point group
`easydistill.tasks`.
"""

from __future__ import annotations

import functools
import operator
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from easydistill.contracts._sections import configs_of
from easydistill.contracts.task import TASK, TaskConfig
from easydistill.registry import Registry

TASKS = Registry("tasks", __name__, TASK)


def task_section(**others: Any) -> Any:
    """The type of one entry of `tasks`: the union of all tasks' configs, told apart by `task`.

    Args:
        others: further classes, told apart by the presence of a key of their name.
    """
    classes = configs_of(TASKS, TaskConfig) | others

    def task_of(value: Any) -> str:
        if isinstance(value, dict):
            return next((key for key in others if key in value), str(value.get("task", "custom")))
        return next((key for key in others if hasattr(value, key)), str(getattr(value, "task", "custom")))

    tagged: list[Any] = [Annotated[config, Tag(name)] for name, config in classes.items()]
    union: Any = functools.reduce(operator.or_, tagged)
    section: Any = Annotated[union, Discriminator(task_of)]
    return section
