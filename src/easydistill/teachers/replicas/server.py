"""One server program on this machine: started behind a guard, asked for its health, ended with all that it started."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from easydistill.teachers.replicas import guard

HOST = "127.0.0.1"
STOP_SECONDS = 10.0
"""What a server gets to end by itself."""
HEALTH_SECONDS = 5.0
"""Longest wait for one answer about its health."""
TAIL_LINES = 15
TAIL_BYTES = 20_000
_OF_RANKS = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})
"""Variables of a launcher of this process, which are not meant for a server."""


class Server:
    """A server program.

    Args:
        command: the program for a port.
        environment: variables beside this process's own; the API key is there, not in the command, which all users of
            the machine can read.
        log: what it prints, over all of its starts.
    """

    def __init__(self, command: Callable[[int], Sequence[str]], environment: Mapping[str, str], log: Path) -> None:
        self._command, self._environment, self.log = command, environment, log
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def url(self) -> str:
        """Root of its API."""
        return f"http://{HOST}:{self.port}/v1"

    def start(self) -> None:
        """Start it, at another port if its last one was taken by somebody else."""
        assert self._process is None
        if not _is_free(self.port):
            self.port = _free_port()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if name not in _OF_RANKS}
        with self.log.open("ab") as printed:
            self._log_start = printed.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-I", guard.__file__, str(STOP_SECONDS), *self._command(self.port)],
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=subprocess.STDOUT,
                env={**inherited, **self._environment},
                start_new_session=True,
            )

    def how_it_ended(self) -> str | None:
        """How the program ended, in words; None while it runs."""
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            return None
        number = code - 128 if code > 128 else -code
        with contextlib.suppress(ValueError):
            if number > 0:
                return f"was killed by {signal.Signals(number).name}"
        return f"ended with exit code {code}"

    def health(self) -> int | None:
        """The status that it answers about its health (200: ready); None if it does not answer."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=HEALTH_SECONDS)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def ask_to_stop(self) -> None:
        """Let the guard end the program."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def stop(self, seconds: float = STOP_SECONDS + 2) -> None:
        """End it with all that it started, by force after so many seconds; it can be started again then."""
        if self._process is None:
            return
        self.ask_to_stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def tail(self) -> list[str]:
        """The last lines that it has printed since its last start."""
        with self.log.open("rb") as printed:
            size = printed.seek(0, os.SEEK_END)
            printed.seek(max(self._log_start, size - TAIL_BYTES))
            return printed.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: connections of an ended one that linger do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
