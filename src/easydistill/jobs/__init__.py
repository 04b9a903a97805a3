"""Jobs: one file each, with its config and its plan. A file's name is the `job_type`.

A module declares the members of `contracts.job.JobModule`: `Job`, a config class with a literal `job_type`, and
`plan(job) -> list[Stage]`. Importing one loads no heavy library: stages import theirs when they run. Every operator
without a file here is a job too (see `_operators.py`).
"""

from __future__ import annotations

from functools import cached_property
from types import ModuleType
from typing import Protocol, runtime_checkable

from easydistill import plain_files
from easydistill.config.job import JobConfig
from easydistill.config.launch import LaunchConfig
from easydistill.contracts.job import JOB
from easydistill.engine.stage import Stage
from easydistill.plain_files import Reference
from easydistill.registry import Registry, declares


class _Jobs(Registry):
    """The jobs in this folder, those of third parties, and those generated from operators."""

    @cached_property
    def _operators(self) -> tuple[str, ...]:
        from easydistill.synthesis.operators import OPERATORS

        own = set(super().names())
        return tuple(name for name in OPERATORS.names() if name not in own)

    @cached_property
    def _generated(self) -> dict[str, ModuleType]:
        return {}

    def names(self) -> tuple[str, ...]:
        return (*super().names(), *self._operators)

    def _load(self, name: str) -> ModuleType:
        if name not in self._operators:
            return super()._load(name)
        if name not in self._generated:
            from easydistill.jobs._operators import operator_job

            self._generated[name] = operator_job(name)
        return self._generated[name]

    def from_file(self, reference: Reference) -> ModuleType:
        """A job of a plain file, or the one of an operator in it."""
        from easydistill.jobs._operators import operator_job
        from easydistill.synthesis.operators import OPERATORS

        if not reference.attribute and declares(reference, self.section):
            return super().from_file(reference)
        operator, name = OPERATORS.module(str(reference)), str(reference)
        known = self._of_files.get(name)
        if known is None or known[0] is not operator:
            known = self._of_files[name] = operator, operator_job(name)
        return known[1]

    @cached_property
    def _of_files(self) -> dict[str, tuple[ModuleType, ModuleType]]:
        """Operators of plain files, and the jobs that were generated from them."""
        return {}


JOBS = _Jobs("jobs", __name__, JOB, section="Job", tag="job_type")


@runtime_checkable
class Launched(Protocol):
    """A stage that may run in several processes, or with parts of the model elsewhere."""

    launch: LaunchConfig | None
    """The job's section."""


@runtime_checkable
class Sharing(Protocol):
    """A stage that shares with other runs what it makes, besides answers, in the folder of the answers cache."""

    answers_cache: str | None
    """The job's."""


def _know_file(stage: Stage, digest: str) -> None:
    """Let the fingerprint of a stage that is defined in a plain file have the state of that file."""
    if type(stage).__module__.startswith(f"{plain_files.__name__}."):
        own = stage.fingerprint
        # An attribute of the instance, whose class may be a frozen one.
        object.__setattr__(stage, "fingerprint", lambda: {**own(), "file": digest})


def stages_of(job: JobConfig) -> list[Stage]:
    """A job's stages, in order."""
    stages: list[Stage] = JOBS.module(job.job_type).plan(job)
    if job.plain_file is not None:
        for stage in stages:
            _know_file(stage, job.plain_file.digest)
    launch: LaunchConfig | None = getattr(job, "launch", None)
    for stage in stages:
        if isinstance(stage, Launched):
            stage.launch = launch
        if isinstance(stage, Sharing):
            stage.answers_cache = job.answers_cache
    return stages
