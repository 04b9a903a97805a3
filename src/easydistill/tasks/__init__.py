"""Tasks of the job `evaluate`: one module each, with its config, what models are asked, and how replies are scored.

A module declares the members of `contracts.task.TaskModule`. Third parties add tasks through the entry-point group
`easydistill.tasks`.
"""

from __future__ import annotations

import functools
import operator
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Tag

from easydistill.config.base import Section, Unfit
from easydistill.config.extensions import configs_of, or_in_a_file
from easydistill.contracts.task import TASK, TaskConfig
from easydistill.registry import Registry

TASKS = Registry("tasks", __name__, TASK, f"{__name__}._function", tag="task")


def task_section(**others: Any) -> Any:
    """The type of one entry of `tasks`: the union of all tasks' configs, told apart by `task`.

    Args:
        others: further classes, told apart by the presence of a key of their name.
    """
    classes = configs_of(TASKS, TaskConfig) | others

    def names_a_task(value: Any) -> Any:
        if isinstance(value, Section) or (isinstance(value, dict) and value.keys() & {"task", *others}):
            return value
        raise Unfit("nothing says which task this is", 'write { "task": "gsm8k", "data": … } or { "lm_eval": … }')

    def task_of(value: Any) -> str:
        if isinstance(value, dict):
            return next((key for key in others if key in value), str(value.get("task", "")))
        return next((key for key in others if hasattr(value, key)), str(getattr(value, "task", "")))

    tagged: list[Any] = [Annotated[config, Tag(name)] for name, config in classes.items()]
    union: Any = functools.reduce(operator.or_, tagged)
    section: Any = Annotated[union, Discriminator(task_of)]
    return Annotated[or_in_a_file(section, TASKS), BeforeValidator(names_a_task)]
