"""An append-only journal of finished work, which survives a kill at any moment.

One JSON value per line. A line is handed to the operating system in one write before the work counts as done,
so a killed process loses nothing that was finished; a line torn by the kill is cut off when the journal is
opened again. A complete but unreadable line (lost blocks after a power cut) costs its own records and no others.
Records that must be kept or lost together share a line.

A disk that is full, or a share that fails, takes no line, or loses those that it had not stored yet. They are kept
elsewhere (`unwritten.py`), an error ends the run, and the journal takes them back when it is opened again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from easydistill.data.files import naming, sync
from easydistill.data.keeping import keep
from easydistill.data.unwritten import Unwritten

FSYNC_SECONDS = 5.0
WAITS = (0.2, 0.5, 1.0)
"""Seconds before another try to write a line: a share may fail for a moment, and space may be made."""
LOGGER = logging.getLogger("easydistill")
_POSITION = 20
"""Bits of a place that hold a record's position in its line; the others hold the line's offset in the file."""


class Journal:
    """Records by key; the last record of a key counts.

    In memory are keys, one number per record, and the notes that say something; records are read back from the file.

    Args:
        path: the file; created if missing.
        note: what to remember of each record, for `note(key)`; None and False are not kept.
    """

    def __init__(self, path: Path, note: Callable[[dict[str, Any]], Any] = lambda record: None) -> None:
        self.path = path
        self._make_note = note
        self._notes: dict[str, Any] = {}
        self._superseded: list[int] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        self._at: dict[str, int] = {}
        self._synced = time.monotonic()
        self._unsynced: list[tuple[bytes, int]] = []
        """Lines, with their numbers of records, of which the disk has not said that it has them."""
        self._unwritten = Unwritten(path)
        self._has_failed = self._is_torn = False
        self._recover()
        self._reader = path.open("rb")
        try:
            self._take_back()
        except BaseException:
            self._reader.close()
            self._file.close()
            raise

    def _recover(self) -> None:
        """Index every readable line, and cut off what follows the last complete one."""
        self._file.seek(0)
        offset = 0
        with self.path.open("rb") as reader:
            for line in reader:
                if not line.endswith(b"\n"):
                    break
                self._index(_records(line), offset)
                offset += len(line)
        if offset < self.path.stat().st_size:
            self._file.truncate(offset)
        self._end = offset

    def _index(self, records: list[dict[str, Any]], offset: int) -> None:
        for position, record in enumerate(records):
            key = record["key"]
            if key in self._at:
                self._superseded.append(self._at[key])
            self._at[key] = offset << _POSITION | position
            note = self._make_note(record)
            if note is None or note is False:
                self._notes.pop(key, None)
            else:
                self._notes[key] = note

    def append(self, *records: dict[str, Any]) -> None:
        """Write records, each with a `key`, as one line: after a kill either all of them are there or none.

        Returns once whoever keeps the run elsewhere has what it wants of them (`keeping.py`).
        """
        line = json.dumps(records, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"
        try:
            with naming(self.path):
                self._write_patiently(line)
        except OSError:
            self._has_failed = True
            self._unwritten.add(line, len(records))
            raise
        self._index(list(records), self._end)
        self._end += len(line)
        self._unsynced.append((line, len(records)))
        # The write above is safe from a kill; fsync adds safety from a power cut, at most every few seconds.
        if time.monotonic() - self._synced > FSYNC_SECONDS:
            self._sync()
        keep(self.path)

    def _write_patiently(self, line: bytes) -> None:
        # Whoever has waited in vain waits no more: others have something to tell, too.
        for wait in () if self._has_failed else WAITS:
            with contextlib.suppress(OSError):
                return self._write(line)
            time.sleep(wait)
        return self._write(line)

    def _write(self, line: bytes) -> None:
        if self._is_torn:
            self._cut()
        view = memoryview(line)
        self._is_torn = True
        try:
            while view:
                view = view[os.write(self._file.fileno(), view) :]
            self._is_torn = False
        except BaseException:
            # A full disk leaves half a line, after which nothing may be written.
            with contextlib.suppress(OSError):
                self._cut()
            raise

    def _cut(self) -> None:
        """Remove what follows the last whole line."""
        self._file.truncate(self._end)
        self._is_torn = False

    def _sync(self) -> None:
        """Have the disk itself hold what was written. A share tells only now that it has no room, and forgets it."""
        try:
            with naming(self.path):
                sync(self._file.fileno())
        except OSError:
            self._has_failed = True
            for line, records in self._unsynced:
                self._unwritten.add(line, records)
            raise
        finally:
            self._unsynced = []
            self._synced = time.monotonic()

    def _take_back(self) -> None:
        """Write what an earlier process could not write here."""
        with self._unwritten.taken_back() as lines:
            taken = 0
            for line in lines:
                records = _records(line)
                if records and not all(self._has(record) for record in records):
                    with naming(self.path):
                        self._write(line)
                    self._index(records, self._end)
                    self._end += len(line)
                    taken += len(records)
            if taken:
                with naming(self.path):
                    sync(self._file.fileno())
                LOGGER.info("%s: %s records were kept elsewhere, as this file could not be written", self.path, taken)
        if taken:
            keep(self.path)

    def _has(self, record: dict[str, Any]) -> bool:
        return record["key"] in self and self.get(record["key"]) == record

    def __contains__(self, key: str) -> bool:
        return key in self._at

    def __len__(self) -> int:
        return len(self._at)

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def get(self, key: str) -> dict[str, Any]:
        """The last record written under `key`.

        Raises:
            KeyError: there is none.
        """
        return self._read(self._at[key])

    @property
    def superseded(self) -> int:
        """Number of records that were replaced by later ones with the same key."""
        return len(self._superseded)

    def get_superseded(self, number: int) -> dict[str, Any]:
        """A replaced record, by its number from 0 in the order of replacement."""
        return self._read(self._superseded[number])

    def _read(self, place: int) -> dict[str, Any]:
        self._reader.seek(place >> _POSITION)
        record: dict[str, Any] = json.loads(self._reader.readline())[place & (1 << _POSITION) - 1]
        return record

    def note(self, key: str) -> Any:
        """What was remembered of the last record under `key`, without reading the file; None if nothing."""
        return self._notes.get(key)

    def close(self) -> None:
        self._reader.close()
        try:
            if self._unsynced:
                self._sync()
        finally:
            self._unwritten.close()
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An error that is on its way says more than that of the last fsync.
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
            self.close()


def records_in(path: Path) -> Iterator[dict[str, Any]]:
    """All records of a journal in order, also those that later ones replace; nothing of any other file. Reads only: a
    run may be writing, and a torn line is left out."""
    with path.open("rb") as lines:
        for line in lines:
            yield from _records(line)


def _records(line: bytes) -> list[dict[str, Any]]:
    """The records of a line; none if `append` did not write it."""
    try:
        records = json.loads(line)
    except (ValueError, RecursionError):
        return []
    whole = isinstance(records, list) and all(isinstance(item, dict) and "key" in item for item in records)
    return records if whole else []
