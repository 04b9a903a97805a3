"""Workers in processes of this machine, each with its own devices.

Messages go over pipes and touch no disk. A process reads the pipe from its parent, whose end ends it, so none outlives
the run. They are in sessions of their own: Ctrl-C on a terminal reaches the run alone, which lets them finish what they
have. What they print is in a file for each.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from easydistill.launch.messages import receive, send
from easydistill.teachers.pool.messages import STOP, Gone, TeacherSpec

GRACE = 10.0
"""Seconds that workers get to free what they hold."""
TAIL = 12
"""Lines of a worker's output that are shown when it dies."""
_OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that would make a worker one of several ranks."""


@dataclass
class _Process:
    number: int
    process: subprocess.Popen[bytes]
    to: IO[bytes]
    back: IO[bytes]
    log: Path


class ProcessCrew:
    """Worker processes.

    Args:
        devices: the GPUs of each worker, by the names of CUDA_VISIBLE_DEVICES; none for a worker without a GPU.
        logs: folder for what workers print.
    """

    def __init__(self, spec: TeacherSpec, devices: Sequence[Sequence[str]], logs: Path) -> None:
        self.size = len(devices)
        self._spec = spec
        self._devices = devices
        self._logs = logs
        self._processes: dict[int, _Process] = {}
        self._selector = selectors.DefaultSelector()

    def start(self, worker: int) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / log_name(worker)
        receiving, sending = os.pipe()
        with log.open("ab") as printed:
            process = subprocess.Popen(
                [sys.executable, "-m", "easydistill.teachers.pool.process", str(sending)],
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=subprocess.STDOUT,
                env=self._environment(worker),
                pass_fds=[sending],
                start_new_session=True,
            )
        os.close(sending)
        assert process.stdin is not None
        # Not buffered: the selector would not see a message that a buffer holds already.
        started = _Process(worker, process, process.stdin, os.fdopen(receiving, "rb", buffering=0), log)
        self._processes[worker] = started
        self._selector.register(started.back, selectors.EVENT_READ, started)
        self.send(worker, self._spec)

    def _environment(self, worker: int) -> dict[str, str]:
        found = {name: value for name, value in os.environ.items() if name not in _OF_RANKS}
        # With a thread for every core each, the workers would wait for one another.
        found.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.size)))
        if self._devices[worker]:
            found["CUDA_VISIBLE_DEVICES"] = ",".join(self._devices[worker])
        return found

    def send(self, worker: int, message: Any) -> None:
        # That it has died is heard.
        with contextlib.suppress(BrokenPipeError):
            send(self._processes[worker].to, message)

    def hear(self, seconds: float) -> list[tuple[int, Any]]:
        heard: list[tuple[int, Any]] = []
        for key, _ in self._selector.select(seconds):
            worker: _Process = key.data
            try:
                heard.append((worker.number, receive(worker.back)))
            except EOFError:
                heard.append((worker.number, Gone(_how(worker.process.wait()), tail_of(worker.log))))
            if isinstance(heard[-1][1], Gone):
                self._clear(worker)
        return heard or [(worker.number, self._ended(worker)) for worker in self._silent()]

    def _silent(self) -> list[_Process]:
        """Workers that have ended while something that they started holds their pipe open."""
        return [worker for worker in self._processes.values() if worker.process.poll() is not None]

    def _ended(self, worker: _Process) -> Gone:
        gone = Gone(_how(worker.process.wait()), tail_of(worker.log))
        self._clear(worker)
        return gone

    def _clear(self, worker: _Process) -> None:
        """End a worker by force, with what it has started, and forget it."""
        # The process group is its session's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
        self._selector.unregister(worker.back)
        for stream in (worker.to, worker.back):
            with contextlib.suppress(OSError):
                stream.close()
        del self._processes[worker.number]

    def end(self, resting: Collection[int]) -> None:
        until = time.monotonic() + GRACE
        for number in resting:
            self.send(number, STOP)
        for worker in list(self._processes.values()):
            if worker.number in resting:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.process.wait(max(0.0, until - time.monotonic()))
            self._clear(worker)


def log_name(worker: int) -> str:
    """The file with what a worker prints."""
    return f"worker-{worker + 1}.log"


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def tail_of(log: Path) -> str:
    """The end of what a worker has printed, if that is here."""
    if not log.is_file():
        return ""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:])
