"""What is on disk about batches: enough for a killed run to go on with those it had submitted, and submit none twice.

A batch is two files. `<token>.jsonl` holds its lines as uploaded, `<token>.json` how far it got, from before the first
call to the server on. A `.jsonl` alone was never sent to anyone.
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
    """How far a batch got."""

    token: str
    """Stands in the batch's metadata at the server, so that it is found there even if its id never arrived here."""
    teacher: str
    """Hash of the teacher's identity."""
    attempt: int
    """How often its rows have been submitted, this time included."""
    created: float
    """Seconds since the epoch, by this machine's clock."""
    rows: int
    file_id: str | None = None
    batch_id: str | None = None
    status: str | None = None
    """The last that the server said."""
    collected: bool = False
    """Whether all that came of it is in the journal."""


class BatchBook:
    """The batches of one stage.

    Args:
        directory: where its files are; made when there is something to write.
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
                mend = "look at the server which batches are under way before you remove it"
                raise DataError(f"{path}: this is not what is kept of a batch\n    → {mend}") from None
        mine = content_hash(teacher)
        found = [record for record in found if record.teacher == mine and not record.collected]
        return sorted(found, key=lambda record: (record.created, record.token))

    def add(self, teacher: dict[str, Any], attempt: int, lines: Sequence[bytes]) -> BatchRecord:
        """Write down what is about to be submitted."""
        record = BatchRecord(uuid.uuid4().hex, content_hash(teacher), attempt, time.time(), len(lines))
        with replacing(self._lines_path(record)) as temporary, temporary.open("wb") as handle:
            handle.writelines(line + b"\n" for line in lines)
        return self.save(record)

    def save(self, record: BatchRecord, **changes: Any) -> BatchRecord:
        """Write down how far it got; returns the record with its changes."""
        record = replace(record, **changes)
        write_json(self.path(record), asdict(record))
        return record

    def finish(self, record: BatchRecord) -> None:
        """All that came of it is recorded elsewhere."""
        self.save(record, collected=True)
        self._lines_path(record).unlink(missing_ok=True)

    def discard(self, record: BatchRecord) -> None:
        """The server never got it."""
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
        """Whether a batch under way holds one of these requests."""
        return any(key in keys for record in self.unfinished(teacher) for key, _ in self.bodies(record))

    def _lines_path(self, record: BatchRecord) -> Path:
        return self.directory / f"{record.token}.jsonl"


def batch_line(key: str, body: dict[str, Any]) -> bytes:
    """A request as a line of a batch's file, without its end."""
    line = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line, separators=(",", ":")).encode()
