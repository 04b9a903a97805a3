"""One job started by several commands at once, as on several machines or by a launcher."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.jobs import command

SILENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def begin(
    arguments: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command that prints into a file: nobody has to read several pipes at once."""
    with log.open("wb") as printed:
        return subprocess.Popen(
            list(arguments),
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **SILENT, **(environment or {})},
        )


class Commands:
    """Commands that share a run, each with its printed lines in a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs: list[Path] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start `easydistill …` (or another program, given whole)."""
        whole = list(arguments) if Path(arguments[0]).is_absolute() else command(*arguments)
        log = self.folder / f"command-{len(self.logs)}.log"
        process = begin(whole, self.folder, log, environment)
        self.logs.append(log)
        self.processes.append(process)
        return process

    def codes(self, timeout: float = 120) -> list[int]:
        """Wait for all; their exit codes."""
        ends = time.monotonic() + timeout
        try:
            return [process.wait(max(0.1, ends - time.monotonic())) for process in self.processes]
        finally:
            self.end()

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def said(self, index: int) -> str:
        return self.logs[index].read_text(encoding="utf-8", errors="replace")

    def all_said(self) -> str:
        return "\n".join(f"--- {log.name}\n{self.said(index)}" for index, log in enumerate(self.logs))


def on_nodes(job: dict[str, Any], nodes: int, **launch: Any) -> dict[str, Any]:
    """The job, to be started on several nodes that are all this machine."""
    return {**job, "launch": {"processes": 1, "nodes": nodes, "rendezvous": f"127.0.0.1:{free_port()}", **launch}}


def script(name: str) -> str:
    """A program of the environment that runs the tests."""
    return str(Path(sys.executable).parent / name)
