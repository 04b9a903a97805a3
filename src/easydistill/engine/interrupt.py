"""Ctrl-C without losing what was paid for: once finishes the work in progress, twice stops at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from easydistill.errors import EXIT_INTERRUPTED, Interrupted


class StopSignal:
    """A request to stop, which every loop checks between two units of work."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def request(self) -> None:
        self._event.set()

    def raise_if_requested(self) -> None:
        """Raise `Interrupted` if the user has asked to stop."""
        if self.requested:
            raise Interrupted("stopped at the user's request")

    @contextlib.contextmanager
    def listening(self, patience: float = 0.0) -> Iterator[None]:
        """Turn SIGINT and SIGTERM into a request; a second signal ends the process at once, or where Python is used
        interactively, in a notebook, the call. In another thread than the main one, nothing is turned into anything.

        Args:
            patience: seconds after the first signal in which another one changes nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        first: list[float] = []

        def handle(number: int, frame: FrameType | None) -> None:
            if first and time.monotonic() < first[0] + patience:
                return
            if self.requested:
                if _interactive():
                    raise KeyboardInterrupt
                os._exit(EXIT_INTERRUPTED)
            self.request()
            first.append(time.monotonic())
            sys.stderr.write("\nstopping: finishing the work in progress (press again to stop at once)\n")

        previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _interactive() -> bool:
    """Whether the process is not the run's alone: the end of a kernel would be the end of all that a notebook holds."""
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules
