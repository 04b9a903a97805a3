"""The store of answers: append-only segments, one for each process that has written, found by request key.

    <folder>/format.json              what this is, and its version
    <folder>/answers/<name>.jsonl     a segment; its lines are those of `entries.py`
    <folder>/claims.lock              see `claims.py`
    <folder>/signals/                 teacher signals, which `signals/shared.py` keeps

A line is written in one call and belongs to one process, so neither threads nor other processes nor a kill can mix two.
What a kill tore off is the end of a segment: it is passed over. A line whose checksum does not fit is told, and its
request is asked again. Nothing is ever changed in place; of several answers under one key the last one counts.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from easydistill.data.answers_cache import ABOUT
from easydistill.data.answers_cache.claims import Claims
from easydistill.data.answers_cache.entries import Place, decode, encode, is_key, places
from easydistill.data.files import read_json, sync, write_json
from easydistill.errors import ConfigError, ConfigIssue

FORMAT = 1
KIND = "easydistill answers"
ANSWERS = "answers"
CLAIMS = "claims.lock"
FSYNC_SECONDS = 5.0
_CHUNK = 16 << 20
_WRITABLE = "name a folder that can be written"


class AnswersCache:
    """A folder of answers.

    Args:
        directory: made if it is missing.
        say: told once of each damaged answer that was looked for, and if nothing more can be written.

    Raises:
        ConfigError: the folder cannot be used, or is of a later version.
    """

    def __init__(self, directory: Path, say: Callable[[str], None] = lambda text: None) -> None:
        self.directory = directory
        self._say = say
        self._lock = threading.RLock()
        self._found: dict[str, Place] = {}
        self._read: dict[str, int] = {}
        """Segment → bytes that are indexed."""
        self._segment: Path | None = None
        self._file: int | None = None
        self._end = 0
        self._synced = time.monotonic()
        self._writes = True
        self.damaged = 0
        """Lines that are no answers, and answers whose checksum does not fit, among those that were looked at."""
        self.unfinished = 0
        """Bytes at the ends of segments that a kill has cut off, or that another process is about to complete."""
        _prepare(directory)
        try:
            self.claims = Claims(directory / CLAIMS)
            self.refresh()
        except OSError as error:
            raise _unfit(directory, f"this folder cannot be used: {error}", _WRITABLE) from None

    # --- reading --------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Take in what other processes have written since."""
        with self._lock:
            self.unfinished = 0
            for name, size in _segments(self.directory):
                self._take_in(name, size)

    def _take_in(self, name: str, size: int) -> None:
        start = self._read.get(name, 0)
        if size <= start:
            return
        with (self.directory / ANSWERS / name).open("rb") as file:
            file.seek(start)
            rest = b""
            while chunk := file.read(_CHUNK):
                data = rest + chunk
                for found in places(data, name, start):
                    if found is None:
                        self._count_damaged(f"a line of {name} is no answer")
                    else:
                        self._index(*found)
                whole = data.rfind(b"\n") + 1
                start, rest = start + whole, data[whole:]
        self._read[name] = start
        self.unfinished += len(rest)

    def _index(self, key: str, place: Place) -> None:
        known = self._found.get(key)
        if known is None or known < place:
            self._found[key] = place

    def _count_damaged(self, what: str) -> None:
        self.damaged += 1
        self._say(f"warning: {self.directory}: {what}; it is asked again (easydistill answers verify looks at all)")

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[str]:
        """All keys, sorted."""
        return iter(sorted(self._found))

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer to a request as it was received; None if there is none, or it is damaged."""
        line = self.line(key)
        record = None if line is None else decode(line)
        if line is not None and record is None:
            with self._lock:
                self._found.pop(key, None)
                self._count_damaged(f"the answer to request {key} is damaged")
        return record

    def line(self, key: str) -> bytes | None:
        """The stored line of an answer, unchecked."""
        place = self._found.get(key)
        if place is None:
            return None
        try:
            with (self.directory / ANSWERS / place.segment).open("rb") as file:
                return os.pread(file.fileno(), place.length, place.offset)
        except FileNotFoundError:
            # Somebody has removed the segment.
            return b""

    # --- writing --------------------------------------------------------------------------------------------------

    def put(self, key: str, record: dict[str, Any], *, replace: bool = False) -> None:
        """Keep an answer, unless there is one.

        A cache that cannot be written is told once and does not end the run: the run's journal has the answer.

        Args:
            record: as JSON, with its `key`, and without secrets.
            replace: keep it in place of what there is.
        """
        with self._lock:
            if not self._writes or not is_key(key) or (key in self._found and not replace):
                return
            known = self._found.get(key)
            now = time.time_ns() // 1_000_000
            # A clock that was set back must not let the older answer win.
            at = now if known is None else max(now, known.at + 1)
            line = encode(key, at, record)
            try:
                self._append(line)
            except OSError as error:
                self._stop_writing(error)
                return
            for found in places(line, self._own_name(), self._end - len(line)):
                assert found is not None
                self._index(*found)
            self._read[self._own_name()] = self._end

    def _own_name(self) -> str:
        assert self._segment is not None
        return self._segment.name

    def _append(self, line: bytes) -> None:
        if self._file is None:
            self._segment = self.directory / ANSWERS / _new_name()
            self._file = os.open(self._segment, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        view = memoryview(line)
        while view:
            view = view[os.write(self._file, view) :]
        self._end += len(line)
        if time.monotonic() - self._synced > FSYNC_SECONDS:
            sync(self._file)
            self._synced = time.monotonic()

    def _stop_writing(self, error: OSError) -> None:
        """Nothing may be written behind half a line."""
        self._writes = False
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
        self._say(
            f"warning: {self.directory}: cannot be written ({error}); answers are kept in the run alone from here on"
        )

    def close(self) -> None:
        with self._lock:
            self.claims.close()
            if self._file is not None:
                with contextlib.suppress(OSError):
                    sync(self._file)
                os.close(self._file)
                self._file = None

    def __enter__(self) -> AnswersCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _prepare(directory: Path) -> None:
    """Make the folder, or check that it is one of ours."""
    try:
        (directory / ANSWERS).mkdir(parents=True, exist_ok=True)
        if not (directory / ABOUT).is_file():
            write_json(directory / ABOUT, {"kind": KIND, "format": FORMAT})
        about = read_json(directory / ABOUT)
    except OSError as error:
        raise _unfit(directory, f"this folder cannot be used: {error}", _WRITABLE) from None
    except ValueError:
        hint = f"if it is an answers cache, remove {ABOUT}, which is then written anew; else name another folder"
        raise _unfit(directory, f"{ABOUT} in this folder is damaged", hint) from None
    kind, version = (about.get("kind"), about.get("format")) if isinstance(about, dict) else (None, None)
    if kind != KIND:
        raise _unfit(directory, f"this folder is no answers cache ({ABOUT} is another's)", "name another folder")
    if version != FORMAT:
        problem = f"it has format {version}, this version of easydistill reads {FORMAT}"
        raise _unfit(directory, problem, "update easydistill, or name a new folder")


def _unfit(directory: Path, problem: str, hint: str) -> ConfigError:
    return ConfigError(ConfigIssue(str(directory), "answers_cache", problem, hint))


def _segments(directory: Path) -> Iterator[tuple[str, int]]:
    """(name, size) of each segment, in the order of their names."""
    with os.scandir(directory / ANSWERS) as found:
        files = [(entry.name, entry.stat().st_size) for entry in found if entry.name.endswith(".jsonl")]
    # Names that begin with a dot are files in the making.
    yield from sorted(item for item in files if not item[0].startswith("."))


def _new_name() -> str:
    """A segment's name: by time, so that listings read well, and unlike any other's."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:12]}.jsonl"


def segment_path(directory: Path) -> Path:
    """Where a new segment of a folder is to be, for one that is written as a whole."""
    return directory / ANSWERS / _new_name()
