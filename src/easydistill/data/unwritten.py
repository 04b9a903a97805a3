"""Lines of a journal that its own disk does not take, kept elsewhere on this machine until the journal is opened again.

A line may hold an answer that was paid for. The places are tried in order: the user's cache, the folders for temporary
files, memory (`/dev/shm`). A file is named by a hash of its journal's path, and only its owner may read it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from easydistill.config.location import cache_directory
from easydistill.data.files import sync


class Unwritten:
    """The lines of one journal that could not be written.

    Args:
        journal: the journal's file.
    """

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.path: Path | None = None
        """Where they are, once there are some."""
        self.records = 0
        self.lost = 0
        """Records that no place took."""
        digest = hashlib.sha256(os.fsencode(journal.absolute())).hexdigest()[:24]
        self._name = f"{digest}.jsonl"
        self._descriptor: int | None = None

    def add(self, line: bytes, records: int) -> None:
        """Keep a line, in the first place that takes it.

        Args:
            records: how many it holds.
        """
        _of_this_process[self.journal] = self
        # The place of the earlier lines first; when that takes no more, another one.
        for folder in (None, *_places()) if self._descriptor is not None else _places():
            with contextlib.suppress(OSError):
                self._write(folder, line)
                self.records += records
                return
        self.lost += records

    def _write(self, folder: Path | None, line: bytes) -> None:
        descriptor = self._descriptor
        if folder is not None:
            descriptor = _opened(folder, self._name)
        assert descriptor is not None
        end = os.fstat(descriptor).st_size
        try:
            view = memoryview(line)
            while view:
                view = view[os.write(descriptor, view) :]
            sync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, end)
            if folder is not None:
                if end == 0:
                    (folder / self._name).unlink(missing_ok=True)
                os.close(descriptor)
            raise
        self._descriptor = descriptor
        if folder is not None:
            self.path = folder / self._name

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @contextlib.contextmanager
    def taken_back(self) -> Iterator[list[bytes]]:
        """The whole lines that an earlier process has kept, which has ended; they are removed at the end, unless it
        fails."""
        with contextlib.ExitStack() as held:
            found: list[Path] = []
            lines: list[bytes] = []
            for folder in _places():
                path = folder / self._name
                if not _is_own(folder) or not path.is_file():
                    continue
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
                held.callback(os.close, descriptor)
                if _locked(descriptor):
                    found.append(path)
                    # What follows the last end of a line was cut off by a kill.
                    lines += [line + b"\n" for line in path.read_bytes().split(b"\n")[:-1]]
            yield lines
            for path in found:
                path.unlink(missing_ok=True)


_of_this_process: dict[Path, Unwritten] = {}


def unwritten_of_this_process() -> list[Unwritten]:
    """What this process could not write to its journals."""
    return list(_of_this_process.values())


def forget_unwritten() -> None:
    """A run starts: what an earlier one of this process could not write is its own affair."""
    _of_this_process.clear()


def _places() -> list[Path]:
    """Where lines may be. Not `tempfile.gettempdir()`, which is another folder while the first one is full."""
    found: list[Path] = []
    # There may be no home.
    with contextlib.suppress(RuntimeError):
        found.append(cache_directory() / "unwritten")
    shared = dict.fromkeys([os.environ.get("TMPDIR") or "/tmp", "/tmp", "/var/tmp", "/dev/shm"])
    return found + [Path(folder) / f"easydistill-{os.getuid()}" / "unwritten" for folder in shared]


def _opened(folder: Path, name: str) -> int:
    if not folder.parent.parent.is_dir():
        folder.parent.parent.mkdir(parents=True)
    folder.parent.mkdir(exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)
    if not _is_own(folder):
        raise PermissionError(f"{folder} belongs to another user")
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    descriptor = os.open(folder / name, flags, 0o600)
    # As long as it is held, nobody takes the lines back: `plan` may run beside this process.
    if not _locked(descriptor):
        os.close(descriptor)
        raise BlockingIOError(f"{folder / name} is in use")
    return descriptor


def _is_own(folder: Path) -> bool:
    """Whether a folder, and the one that it is in, are this user's alone: others may write to the usual places."""
    for path in (folder, folder.parent):
        try:
            about = path.lstat()
        except OSError:
            return False
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & stat.S_IWOTH:
            return False
    return True


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks.
        return True
    return True
