"""What the parent and the processes of a stage tell each other, over pipes: nothing of it touches a disk.

A message is a pickled object behind its length. The parent sends one `Task`, then `STOP` at most once; the end of its
side means that it is gone. A process sends one `Outcome`.
"""

from __future__ import annotations

import datetime
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from easydistill.config.launch import LaunchConfig
from easydistill.engine.secrets import Redactor
from easydistill.engine.stage import Artifact, StageResult
from easydistill.errors import EXIT_FAILED, EasyDistillError

STOP = "stop"
_LENGTH = struct.Struct("!Q")


@dataclass(frozen=True)
class Task:
    """A stage to run: its job's config as set, its name there, and its context."""

    job_type: str
    job: Mapping[str, Any]
    """The fields that the config sets, by alias; secrets as `SecretStr`."""
    launch: LaunchConfig
    stage: str
    directory: Path
    run_directory: Path
    inputs: Mapping[str, Artifact]
    fingerprint: str
    started: datetime.datetime | None
    redactor: Redactor
    said: frozenset[str]
    metrics: Path | None
    quiet: bool
    deterministic: bool
    budget: Mapping[str, Any] | None = None
    """A pipeline's, as `Budget.snapshot` gives it. Other machines are not told: the first process asks."""


@dataclass(frozen=True)
class Outcome:
    """How a process ended: with the stage's result, or with an error."""

    rank: int
    result: StageResult | None = None
    notices: list[str] = field(default_factory=list)
    error: BaseException | None = None
    traceback: str = ""


class LostError(EasyDistillError, RuntimeError):
    """A process's error that could not be sent as it was: its text."""

    def __init__(self, text: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def send(stream: IO[bytes], message: Any) -> None:
    """Write one message."""
    data = pickle.dumps(message)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read one message.

    Raises:
        EOFError: the other side is gone.
    """
    head = _exactly(stream, _LENGTH.size)
    return pickle.loads(_exactly(stream, _LENGTH.unpack(head)[0]))


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = stream.read(count - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def sendable(error: BaseException) -> BaseException:
    """The error itself if it survives pickling with its text, else one that has its text and exit code."""
    try:
        again = pickle.loads(pickle.dumps(error))
        if type(again) is type(error) and str(again) == str(error):
            return error
    except Exception:  # Whatever an error's class does when it is pickled.
        pass
    return LostError(f"{type(error).__name__}: {error}", getattr(error, "exit_code", EXIT_FAILED))
