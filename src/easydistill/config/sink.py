"""What a sink of a run's figures is, and the registry of them.

A sink runs in a process of its own, which reads the run's files and gives it what is new: it cannot slow a training,
and its failure ends nothing but itself. See `easydistill.tracking`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from easydistill.config.base import Section
from easydistill.registry import Contract, Registry


class SinkConfig(Section):
    """A sink's settings. Secrets are `Secret` fields named `api_key`."""

    @property
    def rewritten(self) -> bool:
        """Whether the sink keeps its whole record in `SinkContext.directory`. It is then written anew each time that
        the run is started, so that steps that a kill undid are not in it.

        Otherwise, for a server, the record is continued, and gets a step only once a checkpoint makes it final.
        """
        return True


@dataclass(frozen=True)
class Figures:
    """Figures of one step."""

    group: str
    """What they are about: `train`, `labelling`, `summary/evaluate`; in a pipeline with the job's name before it."""
    step: int
    """An optimiser's step or a number of rows; 0 in a summary."""
    time: float
    """Seconds since 1970."""
    values: Mapping[str, float]
    """By name; each is finite."""


@dataclass(frozen=True)
class SinkContext:
    """The run, as a sink may show it."""

    id: str
    """The same each time that the run is started."""
    name: str
    job_type: str
    settings: Mapping[str, str | int | float | bool]
    """The resolved config, flat, by dotted path; without secrets."""
    directory: Path
    """For the sink's own files, inside the run directory."""


class Sink(Protocol):
    """An open record of a run. Any method may raise: the sink is then given up, and the user is told once."""

    def log(self, figures: Sequence[Figures]) -> None:
        """Add figures, in the order of their steps, and write them where a viewer finds them."""

    def close(self, status: str) -> None:
        """End the record. `status` is that of the run: `done`, `failed` or `interrupted`."""


class SinkModule(Protocol):
    """A module registered as a sink. It loads no library when it is imported."""

    Config: type[SinkConfig]
    """Its settings, the sink's section in `track`."""

    @staticmethod
    def make(config: SinkConfig, context: SinkContext) -> Sink:
        """Open the record of a run, which may exist already unless the config says that it is `rewritten`."""


class SinkDefaults:
    """What a sink's module may also declare."""

    NEEDS: tuple[str, ...] = ()
    """Modules that must be installed."""


SINKS = Registry("sinks", "easydistill.tracking.sinks", Contract(SinkModule, SinkDefaults))
