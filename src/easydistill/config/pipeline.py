"""The config of a `pipeline`: jobs by name, in order, and what they share."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, WithJsonSchema

from easydistill.config.base import Unfit
from easydistill.config.job import JobConfig
from easydistill.config.reading.document import Document, KeyPath, dotted, show

PIPELINE = "pipeline"
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
"""A job's config: as written when it is read, typed once the whole is loaded."""
_CITATION = re.compile(r"@([A-Za-z0-9][A-Za-z0-9_-]*)/(\S+)")


class PipelineConfig(JobConfig):
    """Jobs that run one after another in one run directory."""

    jobs: Annotated[dict[JobName, JobSection], Field(min_length=1)]
    """Name → a job's config. They run in the order in which they are written; `@name/artifact` in place of a path cites
    what an earlier one made: `labeled`, `student`, `signals`, or a file of one of its stages."""
    shared: dict[str, dict[str, Any]] = {}  # noqa: RUF012 (pydantic copies it)
    """Sections that every job has which knows them; a job's own keys win."""


@dataclass(frozen=True)
class Citation:
    """`@name/artifact`: what an earlier job of the pipeline made."""

    job: str
    artifact: str

    @classmethod
    def read(cls, value: Any) -> Citation | None:
        """The citation that a config's value is, if it is one."""
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


@dataclass
class Part(Document):
    """A section of a document, as a document of its own: what a pipeline says of one job."""

    at_path: KeyPath = ()
    """Where it stands in the whole."""
    shared: set[KeyPath] = field(default_factory=set)
    """Paths that came from the pipeline's `shared`."""

    @classmethod
    def of(cls, whole: Document, path: KeyPath) -> Part:
        """The section at `path`; its data are the document's own."""
        data = whole.at(path)
        assert isinstance(data, dict)
        depth = len(path)
        part = cls(whole.name, data, at_path=path)
        part.lines = {inner[depth:]: line for inner, line in whole.lines.items() if inner[:depth] == path}
        part.overridden = {inner[depth:] for inner in whole.overridden if len(inner) > depth and inner[:depth] == path}
        if any(path[:end] in whole.overridden for end in range(1, depth + 1)):
            part.overridden |= {(key,) for key in data}
        return part

    def spelled(self, path: KeyPath) -> str:
        above = ("shared",) if path in self.shared else self.at_path
        return f"{dotted(above)}.{super().spelled(path)}" if path else dotted(above)

    def take(self, section: str, shared: Part) -> None:
        """Have a section of `shared` under the job's own keys."""
        self._fill(self.data, section, shared.data[section], (section,), shared)

    def _fill(self, into: dict[str, Any], key: str, value: Any, path: KeyPath, shared: Part) -> None:
        if key not in into:
            into[key] = copy.deepcopy(value)
            for inner in _paths(value, path):
                self.shared.add(inner)
                if inner in shared.lines:
                    self.lines[inner] = shared.lines[inner]
                if inner in shared.overridden:
                    self.overridden.add(inner)
                if inner in shared.renamed:
                    self.renamed[inner] = shared.renamed[inner]
        elif isinstance(into[key], dict) and isinstance(value, dict):
            for name, item in value.items():
                self._fill(into[key], name, item, (*path, name), shared)


def _paths(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    yield path
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for key, item in inner:
        yield from _paths(item, (*path, key))
