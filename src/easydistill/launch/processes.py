"""The processes of one stage, seen from the parent: started, watched, ended together.

No process outlives the others by more than `GRACE` seconds, and none outlives the parent: each reads the parent's pipe,
whose end ends it. They are in sessions of their own, so Ctrl-C on a terminal reaches the parent alone, which asks them
to stop. SIGTERM, which launchers send to all, asks them too.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Protocol

from easydistill.engine.interrupt import StopSignal
from easydistill.engine.machine.memory import killed_for_memory, memory_limit
from easydistill.engine.machine.room import words
from easydistill.engine.run_directory import LOGGER
from easydistill.launch.failures import GRACE, Failures, RankLost, RankOutOfMemory
from easydistill.launch.messages import STOP, Outcome, Task, receive, send
from easydistill.launch.network import LOOPBACK

LISTEN = 0.2
"""Seconds between two looks at the user's request to stop."""
TRACEBACK = "__easydistill_traceback__"
"""Attribute of a process's error: its traceback there."""
TAIL = 12
"""Lines of a failed process's output that are shown."""


@dataclass(frozen=True)
class Share:
    """The processes of a stage that run on this machine, or are started by this command, among all of them."""

    count: int
    first: int = 0
    world: int | None = None
    """Processes in all; None: these are all."""
    first_here: int = 0
    """Number of the first among those of its machine."""
    here: int | None = None
    """Processes of this machine; None: these are all."""
    address: str = "127.0.0.1"
    """Where the first process of all awaits the others."""
    port: int | None = None
    """None: any that is free."""
    network: Mapping[str, str] = field(default_factory=lambda: {"GLOO_SOCKET_IFNAME": LOOPBACK})
    """Variables that choose the network interface, unless the environment has them."""


class Others(Protocol):
    """The processes of the stage that other commands have started."""

    def failure(self) -> Exception | None:
        """Why the stage cannot go on, if they know it."""

    def finished(self) -> bool:
        """Whether there is nothing to wait for."""

    def ask_to_stop(self) -> None:
        """Have them stop after a checkpoint."""


class Nobody:
    """There are no others."""

    def failure(self) -> Exception | None:
        return None

    def finished(self) -> bool:
        return True

    def ask_to_stop(self) -> None:
        pass


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    to: IO[bytes]
    back: IO[bytes]
    log: Path | None
    relay: threading.Thread | None
    outcome: Outcome | None = None
    killed_before: int = field(default_factory=killed_for_memory)
    """Processes that the kernel had ended for want of memory when this one was started."""


def run_processes(
    task: Task, count: int | Share, logs: Path, stop: StopSignal, others: Others | None = None
) -> Outcome:
    """Run a stage in `count` processes of this machine, or a share of its processes; the outcome of the first of them.

    Args:
        logs: folder for what the processes but the first of all print.
        others: the processes of the stage that other commands run; None: there are none.

    Raises:
        RankLost: a process was killed, or crashed.
        Exception: the error of the process that failed first, as it was raised there.
    """
    share = count if isinstance(count, Share) else Share(count)
    if share.port is None:
        share = replace(share, port=free_port())
    ranks: list[_Rank] = []
    try:
        for number in range(share.count):
            ranks.append(_start(share, number, logs))
        for rank in ranks:
            # One that has died already is found below.
            with contextlib.suppress(BrokenPipeError):
                send(rank.to, task)
        _watch(ranks, stop, others or Nobody())
    finally:
        _end(ranks)
    first = ranks[0].outcome
    assert first is not None, "_watch returns when all have told theirs"
    return first


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def rank_environment(share: Share, number: int) -> dict[str, str]:
    """The variables from which torch.distributed, accelerate and DeepSpeed know their place.

    Args:
        number: of the process within the share.
    """
    named = {
        "RANK": share.first + number,
        "LOCAL_RANK": share.first_here + number,
        "WORLD_SIZE": share.world or share.count,
        "LOCAL_WORLD_SIZE": share.here or share.count,
        "MASTER_ADDR": share.address,
        "MASTER_PORT": share.port,
    }
    return {name: str(value) for name, value in named.items()}


def _start(share: Share, position: int, logs: Path) -> _Rank:
    environment = {**share.network, **os.environ, **rank_environment(share, position)}
    # With a thread for every core each, the processes would wait for one another.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // (share.here or share.count))))
    number = share.first + position
    log = logs / f"rank-{number}.log" if number else None
    receiving, sending = os.pipe()
    with contextlib.ExitStack() as files:
        # The first shows the progress; nothing may reach the command's own output.
        printed = _screen()
        if log is not None:
            logs.mkdir(parents=True, exist_ok=True)
            printed = files.enter_context(log.open("wb")).fileno()
        files.enter_context(_holding_back(signal.SIGTERM))
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


@contextlib.contextmanager
def _holding_back(number: signal.Signals) -> Iterator[None]:
    """What is started meanwhile gets a signal only once it asks for it, when its handler is there."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


def _watch(ranks: Sequence[_Rank], stop: StopSignal, others: Others) -> None:
    """Wait until every process has told its outcome; raise the first one's error that has one."""
    told_to_stop = False
    failures = Failures()
    with selectors.DefaultSelector() as selector:
        for rank in ranks:
            selector.register(rank.back, selectors.EVENT_READ, rank)
        while selector.get_map() or not others.finished():
            if stop.requested and not told_to_stop:
                told_to_stop = True
                others.ask_to_stop()
                for rank in ranks:
                    with contextlib.suppress(BrokenPipeError):
                        send(rank.to, STOP)
            for key, _ in selector.select(LISTEN):
                selector.unregister(key.fileobj)
                failures.add(_hear(key.data))
            failures.add(others.failure())
            failures.raise_if_due()
    failures.raise_if_any()


def _hear(rank: _Rank) -> BaseException | None:
    """Read what a process tells at its end; its error, if it has one."""
    try:
        outcome: Outcome = receive(rank.back)
    except EOFError:
        return _lost(rank)
    rank.outcome = outcome
    if outcome.error is not None:
        LOGGER.error("process %s failed:\n%s", rank.number, outcome.traceback)
        setattr(outcome.error, TRACEBACK, outcome.traceback)
    return outcome.error


def _lost(rank: _Rank) -> RankLost:
    code = rank.process.wait()
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    said = "".join(f"\n    {line}" for line in _last_lines(rank.log))
    told = f"process {rank.number} of the stage {how}"
    if code == -signal.SIGKILL and killed_for_memory() > rank.killed_before:
        limit = memory_limit()
        has = f"\n    {words(limit.bytes)} is {limit.what}" if limit is not None else ""
        return RankOutOfMemory(f"{told}: the kernel ended it because memory had run out{said}{has}")
    hint = "run the same command again: it resumes from the last checkpoint"
    if code == -signal.SIGKILL:
        hint = f"{hint} (the system kills processes when memory runs out: see `plan`)"
    return RankLost(f"{told}{said}\n    → {hint}")


def _last_lines(log: Path | None) -> list[str]:
    """The end of what a process has printed; of the first, that was on the screen already."""
    if log is None or not log.is_file():
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
