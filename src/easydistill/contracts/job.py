"""What a job is: a config class, and a plan that is a list of stages."""

from __future__ import annotations

from types import ModuleType
from typing import Protocol

from easydistill.config.base import NonEmptyStr, Section, Unfit
from easydistill.config.extensions import names_itself
from easydistill.config.job import JobConfig
from easydistill.data.manifest import RowCounts
from easydistill.engine.stage import Artifact, Estimate, Previewed, Stage, StageContext, StageResult
from easydistill.registry import Contract

__all__ = [
    "Artifact",
    "Estimate",
    "JobConfig",
    "JobModule",
    "NonEmptyStr",
    "Previewed",
    "RowCounts",
    "Section",
    "Stage",
    "StageContext",
    "StageResult",
    "Unfit",
]


class JobModule(Protocol):
    """A module registered as a job."""

    Job: type[JobConfig]
    """Its config, with a field `job_type` of the type Literal["<its name>"]."""

    def plan(self, job: JobConfig) -> list[Stage]:
        """The stages of a config, in order. Loads no heavy library."""


def _check(name: str, module: ModuleType) -> list[str]:
    return names_itself(name, module.Job, "job_type")


JOB = Contract(JobModule, check=_check)
