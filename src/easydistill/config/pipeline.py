"""The config of a `pipeline`: named jobs in order, and the sections they share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, SerializeAsAny, WithJsonSchema

from easydistill.config.base import NonEmptyStr, PositiveFloat, PositiveInt, Unfit
from easydistill.config.job import JobConfig
from easydistill.config.values import KeyPath, show

PIPELINE = "pipeline"
GIVEN = ("models", "data")
"""Sections of what is given to a pipeline."""
JobName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


def _section(value: Any) -> Any:
    if not isinstance(value, dict | JobConfig):
        raise Unfit(f"a job's config is needed here, not {show(value)}", 'write { "job_type": …, … }')
    return value


JobSection = Annotated[
    SerializeAsAny[Any],
    BeforeValidator(_section),
    WithJsonSchema({"type": "object", "properties": {"job_type": {"type": "string"}}, "required": ["job_type"]}),
]
"""A job's config: as written at first, typed once the whole pipeline is loaded."""
_CITATION = re.compile(r"@([A-Za-z0-9][A-Za-z0-9_-]*)/(\S+)")


def _model(value: Any) -> Any:
    if not (isinstance(value, str) and value.strip()) and not isinstance(value, dict):
        raise Unfit(f"a model is needed here, not {show(value)}", "write a path, a hub id, or a student's section")
    return value


GivenModel = Annotated[Any, BeforeValidator(_model), WithJsonSchema({"type": ["string", "object"]})]
"""A model: as `models.teacher` or `models.student` of a job names it."""


class PipelineConfig(JobConfig):
    """Jobs that run one after another in one run directory."""

    runtime_only: ClassVar[frozenset[str]] = JobConfig.runtime_only | {"max_cost", "max_tokens_total"}

    jobs: Annotated[dict[JobName, JobSection], Field(min_length=1)]
    """Name → a job's config. Jobs run in the order written. `@name/artifact` in place of a path refers to something an
    earlier job made: `labeled`, `student`, `signals`, or a file of one of its stages."""
    shared: dict[str, dict[str, Any]] = {}  # noqa: RUF012 (pydantic copies it)
    """Sections given to every job that knows them, and of their keys those that it knows; a job's own keys take
    precedence."""

    max_cost: PositiveFloat | None = None
    """Budget of all jobs together for models behind APIs, in the currency of their prices: no request starts that might
    exceed it. What is already spent in the run directory counts. A job's own `inference.max_cost` limits it as well."""
    max_tokens_total: PositiveInt | None = None
    """The same in tokens, prompts and answers together."""
    models: dict[JobName, GivenModel] = {}  # noqa: RUF012
    """Name → a model, which jobs cite as `@models/name`: `{"teacher": …, "student": …}`, for instance. So
    `--set models.student=…` changes it in all of them."""
    data: dict[JobName, NonEmptyStr] = {}  # noqa: RUF012
    """Name → a path of rows, which jobs cite as `@data/name`. Relative paths in a file are relative to the file's
    folder, so that a pipeline can be moved together with its data."""

    @property
    def computes_deterministically(self) -> bool:
        """Whether it or one of its jobs asks for that: they share a process, in which it is set once."""
        inner = (job for job in self.jobs.values() if isinstance(job, JobConfig))
        return self.deterministic or any(job.computes_deterministically for job in inner)


@dataclass(frozen=True)
class Citation:
    """`@name/artifact`: a reference to something that an earlier job of the pipeline made."""

    job: str
    artifact: str

    @classmethod
    def read(cls, value: Any) -> Citation | None:
        """Parse a config's value; None if it is not a citation."""
        match = _CITATION.fullmatch(value) if isinstance(value, str) else None
        return cls(match[1], match[2]) if match else None


def citations(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Citation]]:
    """Every citation inside a job's config, with its path."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from citations(item, (*path, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from citations(item, (*path, index))
    elif (found := Citation.read(value)) is not None:
        yield path, found
