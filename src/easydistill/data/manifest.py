"""The record of a finished stage. It is written last: a stage is complete if and only if its manifest exists."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from easydistill.data.files import hash_file, read_json, write_json

NAME = "manifest.json"


@dataclass(frozen=True)
class RowCounts:
    """Rows that entered a stage, left it, and were rejected by it, by reason."""

    entered: int = 0
    left: int = 0
    rejected: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """A completed stage."""

    stage: str
    fingerprint: str
    fingerprint_of: dict[str, Any]
    """The values that the fingerprint hashes: they tell why a stage has to run again."""
    outputs: dict[str, str]
    """Path inside the stage's directory → SHA-256."""
    rows: RowCounts
    tokens: dict[str, int]
    metrics: dict[str, Any]
    seconds: float
    """Wall time spent in this stage over all attempts."""
    started: str
    finished: str
    versions: dict[str, str]
    notices: list[str] = field(default_factory=list)
    """What the user should know of what the stage has read."""

    def write(self, directory: Path) -> None:
        write_json(directory / NAME, asdict(self))

    @staticmethod
    def read(directory: Path) -> Manifest | None:
        """The manifest of a stage's directory, or None if the stage is not complete."""
        try:
            value = read_json(directory / NAME)
            return Manifest(**{**value, "rows": RowCounts(**value["rows"])})
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def output_hash(self) -> str:
        """One hash over all outputs, for the fingerprint of the stages that read them."""
        from easydistill.data.records import content_hash

        return content_hash(self.outputs)

    def outputs_present(self, directory: Path) -> bool:
        """Whether every output still exists (`verify` also reads them)."""
        return all((directory / name).is_file() for name in self.outputs)

    def verify(self, directory: Path) -> list[str]:
        """Names of outputs that are missing or changed."""
        return [
            name
            for name, digest in self.outputs.items()
            if not (directory / name).is_file() or hash_file(directory / name) != digest
        ]
