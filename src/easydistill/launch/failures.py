"""The errors of a stage's processes: the one that is the reason of the others is to be told.

When a process is gone, those that wait for it in a collective fail too, and their errors may be heard first.
"""

from __future__ import annotations

import re
import time

from easydistill.errors import EasyDistillError, Interrupted, OutOfMemory
from easydistill.launch.messages import LostError

GRACE = 10.0
"""Seconds that the other processes get to end by themselves after one has stopped as it was asked to."""
SETTLE = 3.0
"""Seconds in which the reason why a process could not reach another one may still be heard."""
_COLLECTIVE = r"(?i)gloo|nccl|Dist(Backend|Network|Store)Error|connection (closed|reset) by peer|broken pipe"


class RankLost(EasyDistillError, RuntimeError):
    """A process of the stage ended without saying why."""


class RankOutOfMemory(RankLost, OutOfMemory):
    """The kernel has ended a process of the stage because memory had run out."""

    advised = False


class FollowingError(LostError):
    """A failure of another command's process that may follow from another one, as that command has found."""


class Failures:
    """What the processes have told so far."""

    def __init__(self) -> None:
        self._held: Exception | None = None
        self._until = 0.0

    def add(self, error: BaseException | None) -> None:
        """Raise an error that is a reason, keep the first one that may follow from another."""
        if error is None:
            return
        if not isinstance(error, Exception) or not (follows_another(error) or isinstance(error, Interrupted)):
            raise error
        if self._held is None:
            self._held = error
            # Who has stopped as asked may be ahead of one that still writes its checkpoint.
            self._until = time.monotonic() + (GRACE if isinstance(error, Interrupted) else SETTLE)

    def raise_if_due(self) -> None:
        if time.monotonic() >= self._until:
            self.raise_if_any()

    def raise_if_any(self) -> None:
        if self._held is not None:
            raise self._held


def follows_another(error: BaseException) -> bool:
    """Whether an error may be that of a collective, or of the processes' store, which another process has left."""
    if isinstance(error, FollowingError):
        return True
    if isinstance(error, RankLost):
        # NCCL's watchdog aborts a process whose partner is gone.
        return "SIGABRT" in str(error)
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, RuntimeError) and re.search(_COLLECTIVE, text) is not None
