"""Who works on a run in a store: an object with the owner's name, which changes as long as the owner lives.

It tells a second command early and in words. What keeps two commands apart even if one of them was only slow is the
chain of commits (`history.py`): of two that create the same number, one fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from easydistill.errors import RunDirectoryBusy
from easydistill.remote.history import FOLDER
from easydistill.remote.store import Absent, Exists, Store

KEY = f"{FOLDER}/lock"
BEATS = 4
"""Signs of life in the time after which an owner without one is taken for dead."""


class RunTaken(RunDirectoryBusy):
    """Another command has gone on with the run, as if this one were dead."""


class RemoteLock:
    """The lock of one command.

    Args:
        seconds: without a sign of life for so long, this command may be taken for dead.
    """

    def __init__(self, store: Store, seconds: float, say: Callable[[str], None]) -> None:
        self.owner = secrets.token_hex(8)
        self._store, self._seconds, self._say = store, seconds, say
        self._beat = 0

    def acquire(self, attempt: Callable[[Callable[[], Any]], Any]) -> None:
        """Take the lock; wait for a sign of life of another owner's.

        Args:
            attempt: calls a function until the store has done what it is asked.

        Raises:
            RunDirectoryBusy: another command is at work.
        """
        while True:
            try:
                attempt(lambda: self._store.create(KEY, self._content()))
                return
            except Exists:
                other = attempt(self._read)
            if other is None:
                continue
            if not _is_dead_here(other):
                self._await_silence(other, attempt)
            self._say(f"note: {_who(other)} has stopped without a word; going on with its run")
            attempt(lambda: self._store.put(KEY, self._content()))
            return

    def _await_silence(self, other: dict[str, Any], attempt: Callable[[Callable[[], Any]], Any]) -> None:
        patience = float(other.get("seconds", self._seconds))
        until = time.monotonic() + patience
        self._say(f"{_who(other)} has the lock of {self._store.url}: waiting up to {patience:.0f} s for a sign of life")
        while time.monotonic() < until:
            time.sleep(min(max(patience / 20, 0.05), 2.0))
            now = attempt(self._read)
            if now is None:
                return
            if now != other:
                raise RunDirectoryBusy(
                    f"{self._store.url}: {_who(now)} is working here\n"
                    "    → wait for it, or give this run another output_dir"
                )

    def beat(self) -> None:
        """Give a sign of life.

        Raises:
            RunTaken: another command has the lock.
        """
        found = self._read()
        if found is not None and found.get("owner") != self.owner:
            raise taken(self._store.url, found)
        self._beat += 1
        self._store.put(KEY, self._content())

    def release(self) -> None:
        found = self._read()
        if found is not None and found.get("owner") == self.owner:
            self._store.delete([KEY])

    def _content(self) -> bytes:
        about = {"owner": self.owner, "beat": self._beat, "seconds": self._seconds, **_this_process()}
        return json.dumps(about).encode()

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self._store.read(KEY))
        except Absent:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def taken(url: str, other: dict[str, Any] | None = None) -> RunTaken:
    who = _who(other) if other else "another command"
    return RunTaken(
        f"{url}: {who} has gone on with this run, as this command gave no sign of life for too long\n"
        "    → let that one finish; if both are yours, start one"
    )


def _who(about: dict[str, Any]) -> str:
    return f"a command (process {about.get('pid', '?')} on {about.get('host', '?')})"


def _this_process() -> dict[str, Any]:
    about: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine()}
    return about


def _machine() -> str:
    """This start of this machine, and what its process numbers mean; empty if unknown."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _is_dead_here(other: dict[str, Any]) -> bool:
    """Whether it was a process of this machine, and is no more."""
    if not other.get("machine") or other["machine"] != _machine():
        return False
    return not Path(f"/proc/{other.get('pid')}").exists()
