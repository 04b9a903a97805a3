"""The caller's side of `_math_worker.py`: starts the process, asks it, and kills it.

It is started without forking the caller's Python, so threads, CUDA and pytest do not interfere. It is reached through
pipes and has a process group of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from easydistill.errors import MissingExtra

_START_SECONDS = 120.0
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""The only variables that the process inherits, so it gets no keys."""
_ENDED = "its process ended: out of memory, out of CPU time, or killed"


class ProcessDied(Exception):
    """The process ended, or was killed, before it answered."""


class MathProcess:
    """One process. Used by one thread at a time."""

    def __init__(self, seconds: float, memory: int) -> None:
        self.uses = 0
        self._unread = b""
        script = Path(__file__).with_name("_math_worker.py")
        self._process = subprocess.Popen(
            # -P, so that the modules of this folder cannot shadow others.
            [sys.executable, "-P", str(script), str(seconds), str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )

    def wait_until_ready(self) -> None:
        """Wait until it answers.

        Raises:
            ProcessDied: it ended, or was not ready in time.
            MissingExtra: math-verify cannot be imported.
        """
        state, *detail = self._read(_START_SECONDS)
        if state == "missing":
            raise MissingExtra("synth", f"Comparing answers by algebra ({detail[0]})")

    def compare(self, reference: str, candidate: str, seconds: float) -> tuple[str, str]:
        """The outcome and its reason.

        Raises:
            ProcessDied: there was no answer in time.
        """
        self.uses += 1
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([reference, candidate]).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ProcessDied(_ENDED) from None
        outcome, reason = self._read(seconds)
        return outcome, reason

    def _read(self, seconds: float) -> list[str]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ProcessDied(f"no answer within {seconds:g} seconds")
            if poll.poll(left * 1000):
                chunk = os.read(descriptor, 65536)
                if not chunk:
                    raise ProcessDied(_ENDED)
                self._unread += chunk
        line, self._unread = self._unread.split(b"\n", 1)
        reply: list[str] = json.loads(line)
        return reply

    def kill(self) -> None:
        """Kill it and its descendants. Any thread may call this; one that waits for an answer gets `ProcessDied`."""
        # Until it has been waited for, no other process or group can have its id.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def remove(self) -> None:
        """Kill it and close its pipes, from which no other thread may be reading. May be called twice."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
