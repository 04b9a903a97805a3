"""Every error a user can meet, as one small tree.

Each class also inherits the standard type it resembles and carries the exit code of the command:
1 failed at run time, 2 bad config, 4 the machine has failed the run, 130 interrupted. (0 is success; 3, too many
rejected rows, is an outcome of a finished run and therefore not an exception.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_BAD_CONFIG = 2
EXIT_TOO_MANY_REJECTED = 3
EXIT_MACHINE = 4
EXIT_INTERRUPTED = 130


class EasyDistillError(Exception):
    """Base of all errors raised on purpose. Its text is written for the user, not for the developer."""

    exit_code = EXIT_FAILED


@dataclass(frozen=True)
class ConfigIssue:
    """One thing wrong with a config: where it is, what it is, and how to fix it."""

    where: str
    """`file:line`, or `--set` for an override."""
    path: str
    """Dotted path inside the config, such as `training.learning_rate`; empty for the file as a whole."""
    problem: str
    hint: str = ""

    def __str__(self) -> str:
        head = f"{self.where}: {self.path}: {self.problem}" if self.path else f"{self.where}: {self.problem}"
        return f"{head}\n    → {self.hint}" if self.hint else head


class ConfigError(EasyDistillError, ValueError):
    """The config cannot be run. Lists every issue at once."""

    exit_code = EXIT_BAD_CONFIG

    def __init__(self, issues: Sequence[ConfigIssue] | ConfigIssue) -> None:
        self.issues: tuple[ConfigIssue, ...] = (issues,) if isinstance(issues, ConfigIssue) else tuple(issues)
        super().__init__("\n".join(str(issue) for issue in self.issues))


class DataError(EasyDistillError, ValueError):
    """A data file, or what is in it, cannot be used."""


class ModelError(EasyDistillError, ValueError):
    """A model cannot be found, loaded or built."""


class TeacherError(EasyDistillError, RuntimeError):
    """The teacher cannot continue at all (wrong key, unknown model, server gone). Finished rows are kept."""


class QuotaExhausted(TeacherError):
    """The account behind the API has no credit left; asking again would fail again."""


class MachineError(EasyDistillError):
    """The run needs more of this machine than there is. Finished work is kept, and the same command goes on once there
    is enough."""

    exit_code = EXIT_MACHINE


class StorageError(MachineError, OSError):
    """Files cannot be written or read: the disk is full, a quota is used up, a directory or a share refuses."""


class OutOfMemory(MachineError, MemoryError):
    """Memory has run out, of this machine or of a GPU, or what this process may take of it."""

    advised = True
    """Whether its text says what to do. (Who raises it may not know the stage, and so its settings.)"""


class RunDirectoryBusy(EasyDistillError, RuntimeError):
    """Another process is working in the same run directory."""


class StoreError(EasyDistillError, OSError):
    """An object store cannot be used, or has failed for too long. What was finished is in the local copy."""


class StoreDamaged(StoreError, DataError):
    """Objects of a run are missing or are not what was sent."""


class NotDeterministic(EasyDistillError, RuntimeError):
    """`deterministic` is set, and an operation cannot give the same result every time."""


class CloudError(EasyDistillError, RuntimeError):
    """A cloud or a cluster cannot be reached, or has refused what was asked of it; or a tool to reach it is missing."""


class MissingExtra(EasyDistillError, ImportError):
    """An optional part of easydistill is needed but not installed."""

    def __init__(self, extra: str, purpose: str) -> None:
        self.extra = extra
        super().__init__(
            f"{purpose} needs the extra '{extra}', which is not installed.\n"
            f"    → pip install 'easydistill-toolkit[{extra}]'"
        )


class Interrupted(EasyDistillError):
    """The user asked to stop; finished work is on disk, and the same command resumes from there."""

    exit_code = EXIT_INTERRUPTED
