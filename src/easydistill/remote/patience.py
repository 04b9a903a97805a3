"""Trying again while a store fails: with growing pauses, told once, and not for ever."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from easydistill.engine.run_directory import LOGGER
from easydistill.errors import StoreError
from easydistill.remote.store import Absent, Exists, Trouble

T = TypeVar("T")
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
CONTACT = 30.0
"""Seconds after which a store that has not worked yet is given up."""


class Patience:
    """What is done when a store fails.

    Args:
        seconds: how long something is tried before it is given up.
        say: tells the user.
        where: the store and the local copy, in words.
    """

    def __init__(self, seconds: float, say: Callable[[str], None], url: str, directory: object) -> None:
        self.seconds = seconds
        self._say, self._url, self._directory = say, url, directory
        self._lock = threading.Lock()
        self._failing = 0
        """Calls that have failed and are being repeated."""
        self.hurry = threading.Event()
        """Set once nobody waits for the store any more."""

    def attempt(self, call: Callable[[], T], *, first: bool = False) -> T:
        """Call a function until the store has done what it is asked.

        Args:
            first: whether nothing has worked yet: then an absent object means that its bucket is absent, and little is
                tried again.

        Raises:
            StoreError: the store has failed for too long.
        """
        started, pause, failed = time.monotonic(), FIRST_PAUSE, False
        while True:
            try:
                result = call()
            except Exists:
                self._answered(failed)
                raise
            except Absent as error:
                self._answered(failed)
                if not first:
                    raise
                raise StoreError(f"{self._url}: {error}\n    → make the bucket first, or correct output_dir") from None
            except Trouble as error:
                limit = min(self.seconds, CONTACT) if first else self.seconds
                spent = time.monotonic() - started
                if spent + pause > limit or self.hurry.is_set() or (first and error.denied):
                    raise self._given_up(error, spent) from error
                self._tell(error, again=failed)
                failed = True
                self.hurry.wait(pause * random.uniform(0.7, 1.0))
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                self._answered(failed)
                return result

    def _tell(self, error: Trouble, *, again: bool) -> None:
        """Tell that the store has begun to fail, once until everything works again."""
        LOGGER.warning("%s fails: %s", self._url, error)
        if again:
            return
        with self._lock:
            self._failing += 1
            is_news = self._failing == 1
        if is_news:
            self._say(
                f"warning: {self._url} fails: {error}\n"
                f"    → trying again for {self.seconds:.0f} s; the run goes on in {self._directory}"
            )

    def _answered(self, failed: bool) -> None:
        """Tell that the store works again, once no call is being repeated.

        Args:
            failed: whether the call that was answered had failed before.
        """
        if not failed:
            return
        with self._lock:
            self._failing -= 1
            is_over = not self._failing
        if is_over:
            LOGGER.info("%s works again", self._url)
            self._say(f"{self._url} works again")

    def _given_up(self, error: Trouble, seconds: float) -> StoreError:
        return StoreError(
            f"{self._url}: given up after {seconds:.0f} s: {error}\n"
            f"    → finished work is in {self._directory}; once the store works, the same command on this machine "
            "sends it and resumes"
        )
