"""What a target is: how a job is rendered for it, and how it is talked to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from easydistill.cloud.settings import TargetConfig
from easydistill.cloud.spec import JobSpec
from easydistill.errors import CloudError
from easydistill.registry import Contract, Registry


class NotKnown(CloudError):
    """There was no answer, so whether what was asked for has been done is not known."""


@dataclass(frozen=True)
class Document:
    """What is sent."""

    text: str
    """Exactly as it is sent."""
    suffix: str
    """Of a file that holds it: `.yaml` or `.json`."""
    notes: Sequence[str] = ()
    """What a user should know before it is sent."""


@dataclass(frozen=True)
class State:
    """What has become of a job."""

    phase: str
    """`waiting`, `running`, `done`, `failed`, `cancelled`, `gone` (the target does not know it)."""
    said: str = ""
    """The target's own word."""
    reason: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.phase in ("done", "failed", "cancelled", "gone")


class Client(Protocol):
    """Talks to what runs the jobs. Each method raises `CloudError`."""

    def submit(self, spec: JobSpec, document: Document) -> str:
        """Send a job; returns its id."""

    def find(self, name: str) -> str | None:
        """The id of a job that was sent under a name; None if there is none."""

    def status(self, id: str) -> State:
        """What has become of it."""

    def logs(self, id: str, node: int | None, lines: int | None, follow: bool) -> Iterator[str]:
        """Lines of its output: of one machine, or of all; the last `lines` of each; until it ends if `follow`."""

    def cancel(self, id: str) -> None:
        """End it. Files of the run stay."""


class TargetModule(Protocol):
    """A module registered as a target. It loads no library of the target when it is imported."""

    Config: type[TargetConfig]
    """Its settings."""

    @staticmethod
    def render(spec: JobSpec, config: TargetConfig) -> Document:
        """The document that is sent: a pure function.

        Raises:
            ConfigError: the target would refuse it.
        """

    @staticmethod
    def connect(config: TargetConfig) -> Client:
        """A client.

        Raises:
            CloudError: a tool, a library or credentials are missing.
        """


TARGETS = Registry("targets", "easydistill.cloud.targets", Contract(TargetModule))
"""By the module's name: `pai_dlc` for `--to pai-dlc`."""
