"""Generates a job from each operator, under the operator's name.

A file in `jobs/` takes precedence over the job that would be generated here.
"""

from __future__ import annotations

from inspect import getdoc
from types import ModuleType
from typing import Any, Literal

from pydantic import Field, ValidationError, create_model

from easydistill.config.extensions import members
from easydistill.contracts.operator import OperatorConfig
from easydistill.engine.stage import Stage
from easydistill.jobs._synthesis import SelectionJob, SynthesisJob, select, synthesise
from easydistill.synthesis.operators import OPERATORS


def operator_job(name: str) -> ModuleType:
    """A module like those in `jobs/`, with `Job` and `plan`.

    Raises:
        ExtensionError: the operator cannot be used.
    """
    operator = OPERATORS.module(name)
    asks = all(issubclass(section, OperatorConfig) for section in members(operator.Config))
    base: type[SynthesisJob | SelectionJob] = SynthesisJob if asks else SelectionJob
    literal: Any = Literal[name]  # type: ignore[valid-type]
    fields: dict[str, Any] = {
        "job_type": (literal, Field(description="Which job this is.")),
        "synthesis": (operator.Config, _default(operator.Config)),
    }
    made: Any = ModuleType(f"{__name__}.{name}", operator.__doc__)
    summary = operator.SUMMARY or (getdoc(operator) or name).partition("\n")[0]
    made.Job = create_model("Job", __base__=base, __module__=made.__name__, __doc__=summary, **fields)

    def plan(job: Any) -> list[Stage]:
        """synthesise."""
        return synthesise(job, name, job.synthesis) if asks else select(job, name, job.synthesis)

    made.plan = plan
    return made  # type: ignore[no-any-return]


def _default(config: Any) -> Any:
    """The default of the section; `...` (required) if it has required fields."""
    try:
        return config()
    except ValidationError:
        return ...
