"""Batches on disk: what a killed run needs to continue with those it had submitted, and to submit none twice.

A batch is two files. `<token>.jsonl` holds its lines as uploaded; `<token>.json` its progress, written before the first
call to the server. A `.jsonl` alone was never sent.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from easydistill.data.files import read_json, replacing, write_json
from easydistill.data.records import content_hash
from easydistill.errors import DataError

DIRECTORY = "batches"


@dataclass(frozen=True)
class BatchRecord:
    """A batch's progress."""

    token: str
    """Stored in the batch's metadata at the server, so that it can be found there even if its id never arrived here."""
    teacher: str
    """Hash of the teacher's identity."""
    attempt: int
    """How many times its rows have been submitted, this time included."""
    created: float
    """Seconds since the epoch, by this machine's clock."""
    rows: int
    file_id: str | None = None
    batch_id: str | None = None
    status: str | None = None
    """As last reported by the server."""
    collected: bool = False
    """Whether all of its outcomes are in the journal."""


class BatchBook:
    """The batches of one stage.

    Args:
        directory: where its files are; created with the first batch.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def unfinished(self, teacher: dict[str, Any]) -> list[BatchRecord]:
        """Batches of this teacher that are not collected, oldest first.

        Raises:
            DataError: a file of ours cannot be read.
        """
        found: list[BatchRecord] = []
        for path in self.directory.glob("*.json"):
            try:
                found.append(BatchRecord(**read_json(path)))
            except (ValueError, TypeError):
                hint = "check at the server which batches are in progress before you remove it"
                raise DataError(f"{path}: this is not a batch's record\n    → {hint}") from None
        mine = content_hash(teacher)
        found = [record for record in found if record.teacher == mine and not record.collected]
        return sorted(found, key=lambda record: (record.created, record.token))

    def add(self, teacher: dict[str, Any], attempt: int, lines: Sequence[bytes]) -> BatchRecord:
        """Store a batch that is about to be submitted."""
        record = BatchRecord(uuid.uuid4().hex, content_hash(teacher), attempt, time.time(), len(lines))
        with replacing(self._lines_path(record)) as temporary, temporary.open("wb") as handle:
            handle.writelines(line + b"\n" for line in lines)
        return self.save(record)

    def save(self, record: BatchRecord, **changes: Any) -> BatchRecord:
        """Store a batch's progress; returns the changed record."""
        record = replace(record, **changes)
        write_json(self.path(record), asdict(record))
        return record

    def finish(self, record: BatchRecord) -> None:
        """All of its outcomes are journalled."""
        self.save(record, collected=True)
        self._lines_path(record).unlink(missing_ok=True)

    def discard(self, record: BatchRecord) -> None:
        """The server never received it."""
        self.path(record).unlink()
        self._lines_path(record).unlink(missing_ok=True)

    def path(self, record: BatchRecord) -> Path:
        """The file that holds `record`."""
        return self.directory / f"{record.token}.json"

    def content(self, record: BatchRecord) -> bytes:
        """The file to upload."""
        return self._lines_path(record).read_bytes()

    def bodies(self, record: BatchRecord) -> Iterator[tuple[str, dict[str, Any]]]:
        """(request's key, body as sent) of each line."""
        with self._lines_path(record).open("rb") as handle:
            for line in handle:
                value = json.loads(line)
                yield value["custom_id"], value["body"]

    def holds_any(self, teacher: dict[str, Any], keys: Container[str]) -> bool:
        """Whether a batch in progress holds one of these requests."""
        return any(key in keys for record in self.unfinished(teacher) for key, _ in self.bodies(record))

    def _lines_path(self, record: BatchRecord) -> Path:
        return self.directory / f"{record.token}.jsonl"


def batch_line(key: str, body: dict[str, Any]) -> bytes:
    """A request as a line of a batch's file, without the newline."""
    line = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line, separators=(",", ":")).encode()
