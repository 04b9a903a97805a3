"""The processes of one stage, seen from the parent: started, watched, ended together.

No process outlives the others by more than `GRACE` seconds, and none outlives the parent: each reads the parent's pipe,
whose end ends it. They are in sessions of their own, so Ctrl-C on a terminal reaches the parent alone, which asks them
to stop.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from easydistill.engine.interrupt import StopSignal
from easydistill.engine.run_directory import LOGGER
from easydistill.errors import EasyDistillError
from easydistill.launch.messages import STOP, Outcome, Task, receive, send

GRACE = 10.0
"""Seconds that the other processes get to end by themselves after one has failed."""
LISTEN = 0.2
"""Seconds between two looks at the user's request to stop."""
TAIL = 12
"""Lines of a failed process's output that are shown."""


class RankLost(EasyDistillError, RuntimeError):
    """A process of the stage ended without saying why."""


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    to: IO[bytes]
    back: IO[bytes]
    log: Path | None
    relay: threading.Thread | None
    outcome: Outcome | None = None


def run_processes(task: Task, count: int, logs: Path, stop: StopSignal) -> Outcome:
    """Run a stage in `count` processes of this machine; the outcome of the first.

    Args:
        logs: folder for what the processes but the first print.

    Raises:
        RankLost: a process was killed, or crashed.
        Exception: the error of the process that failed first, as it was raised there.
    """
    port = _free_port()
    ranks: list[_Rank] = []
    try:
        for number in range(count):
            ranks.append(_start(number, count, port, logs))
        for rank in ranks:
            # One that has died already is found below.
            with contextlib.suppress(BrokenPipeError):
                send(rank.to, task)
        _watch(ranks, stop)
    finally:
        _end(ranks)
    first = ranks[0].outcome
    assert first is not None, "_watch returns when all have told theirs"
    return first


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(number: int, count: int, address: str, port: int) -> dict[str, str]:
    """The variables from which torch.distributed, accelerate and DeepSpeed know their place."""
    named = {
        "RANK": number,
        "LOCAL_RANK": number,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
    }
    return {name: str(value) for name, value in named.items()}


def _start(number: int, count: int, port: int, logs: Path) -> _Rank:
    environment = {**os.environ, **rank_environment(number, count, "127.0.0.1", port)}
    # With a thread for every core each, the processes would wait for one another.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    log = logs / f"rank-{number}.log" if number else None
    receiving, sending = os.pipe()
    with contextlib.ExitStack() as files:
        # The first shows the progress; nothing may reach the command's own output.
        printed = _screen()
        if log is not None:
            logs.mkdir(parents=True, exist_ok=True)
            printed = files.enter_context(log.open("wb")).fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "easydistill.rank", str(sending)],
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[sending],
            start_new_session=True,
        )
    os.close(sending)
    relay = None
    if process.stdout is not None:
        relay = threading.Thread(target=_relay, args=(process.stdout,), daemon=True)
        relay.start()
    assert process.stdin is not None
    return _Rank(number, process, process.stdin, os.fdopen(receiving, "rb"), log, relay)


def _screen() -> int:
    """Where the first process prints: the terminal itself, so that it can draw bars, or a pipe to a replaced stderr."""
    try:
        return sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):
        return subprocess.PIPE


def _relay(printed: IO[bytes]) -> None:
    """Copy a process's output to this process's stderr, which is no file (a notebook's, a test's)."""
    with printed:
        for line in printed:
            sys.stderr.write(line.decode("utf-8", "replace"))


def _watch(ranks: Sequence[_Rank], stop: StopSignal) -> None:
    """Wait until every process has told its outcome; raise the first one's error that has one."""
    told_to_stop = False
    with selectors.DefaultSelector() as selector:
        for rank in ranks:
            selector.register(rank.back, selectors.EVENT_READ, rank)
        while selector.get_map():
            if stop.requested and not told_to_stop:
                told_to_stop = True
                for rank in ranks:
                    with contextlib.suppress(BrokenPipeError):
                        send(rank.to, STOP)
            for key, _ in selector.select(LISTEN):
                selector.unregister(key.fileobj)
                _hear(key.data)


def _hear(rank: _Rank) -> None:
    """Read what a process tells at its end.

    Raises:
        RankLost: it has ended without a word.
        Exception: its own error.
    """
    try:
        outcome: Outcome = receive(rank.back)
    except EOFError:
        raise RankLost(_lost(rank)) from None
    rank.outcome = outcome
    if outcome.error is not None:
        LOGGER.error("process %s failed:\n%s", rank.number, outcome.traceback)
        raise outcome.error


def _lost(rank: _Rank) -> str:
    code = rank.process.wait()
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    hint = "run the same command again: it resumes from the last checkpoint"
    if code == -signal.SIGKILL:
        hint = f"{hint} (the system kills processes when memory runs out: see `plan`)"
    said = "".join(f"\n    {line}" for line in _last_lines(rank.log))
    return f"process {rank.number} of the stage {how}{said}\n    → {hint}"


def _last_lines(log: Path | None) -> list[str]:
    """The end of what a process has printed; of the first, that was on the screen already."""
    if log is None:
        return []
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]


def _end(ranks: Sequence[_Rank]) -> None:
    """End every process, those that do not end by themselves by force, with what they have started."""
    ended = all(rank.outcome is not None and rank.outcome.error is None for rank in ranks)
    until = time.monotonic() + (GRACE if ended else 0.0)
    for rank in ranks:
        with contextlib.suppress(subprocess.TimeoutExpired):
            rank.process.wait(max(0.0, until - time.monotonic()))
        # The process group is its session's: data loaders' workers are in it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(rank.process.pid, signal.SIGKILL)
        rank.process.wait()
        if rank.relay is not None:
            rank.relay.join()
        for stream in (rank.to, rank.back):
            with contextlib.suppress(OSError):
                stream.close()
