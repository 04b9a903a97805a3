"""Run programs that a language model wrote, and whatever they do, be there afterwards and leave nothing behind.

Enters: a Python program as text, its standard input, `Limits`. Leaves: `Ran`: what it printed, how it ended, what it
used.

A program runs in a fresh Python with the standard library only, under a small supervisor (`supervisor.py`)
that adopts and kills all that the program starts. It has an environment and a directory of its own, no descriptor but
the standard three, limits on whatever Linux can limit, no way to a new privilege, a filter of system calls (no sockets,
no tracing, no namespaces), and, where this process is root, a user of its own. Where the kernel allows namespaces it
sees no other process, no network, and a file system of Python, `/usr` and an empty `/tmp` in memory. Elsewhere
Landlock, where there is any, keeps it from files, and its directory is on disk and watched. What of this holds on a
machine is measured once: `protections()`.

It does not protect from: faults of the kernel or the processor, and what a neighbour learns from timing; use of the
processor, memory and disk up to the limits, times the programs that run at once; reading what everybody may read in
`/usr` and Python's own directories, and anywhere without namespaces and Landlock; there also writing where everybody
may write, or where the user may who is not root; with Landlock alone, changing modes and times of that user's files.
It is no virtual machine: for programs written with intent, use one around all of this. And a program that passes its
tests is not a program that is right.

Linux only. Any thread may call this; no signals are used.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from easydistill.errors import EasyDistillError

from .controller import Ended, SupervisorFailed, supervised
from .directory import fresh_directory
from .spec import Limits, Plan, spec_of, unused_user

__all__ = ["Limits", "Outcome", "Ran", "Sandbox", "protections", "run_program"]

Outcome = Literal["ok", "failed", "timed_out", "out_of_cpu", "out_of_memory", "too_much_output", "killed"]


@dataclass(frozen=True)
class Ran:
    """What came of a program."""

    outcome: Outcome
    stdout: str
    stderr: str
    """Both cut off at the limit; what is not UTF-8 is replaced."""
    exit_code: int | None
    """None where a signal ended it."""
    signal: int | None
    wall_seconds: float
    cpu_seconds: float
    """Of all its processes, the start of Python included."""
    reason: str = ""
    """Which limit ended it."""


_DEFAULT = Limits()


def run_program(source: str, *, stdin: str = "", limits: Limits = _DEFAULT) -> Ran:
    """Run a program and wait for its end.

    Raises:
        EasyDistillError: programs cannot be run here at all, whatever they are. What a program does raises nothing.
    """
    return _run(_plan(), source, stdin, limits)


class Sandbox:
    """Runs programs, a bounded number at a time. Any number of threads may use it; it holds nothing when idle."""

    def __init__(self, workers: int = 2, limits: Limits = _DEFAULT) -> None:
        if workers < 1:
            raise ValueError("a sandbox needs at least one worker")
        self.workers, self.limits = workers, limits
        self._slots = threading.BoundedSemaphore(workers)

    def run(self, source: str, *, stdin: str = "") -> Ran:
        """As `run_program`, after waiting for a place."""
        with self._slots:
            return run_program(source, stdin=stdin, limits=self.limits)

    def run_many(self, programs: Iterable[tuple[str, str]]) -> list[Ran]:
        """Run many (source, stdin) pairs, in their order."""
        pool = ThreadPoolExecutor(self.workers, "sandbox")
        try:
            return list(pool.map(lambda program: self.run(program[0], stdin=program[1]), programs))
        finally:
            pool.shutdown(cancel_futures=True)


def _run(plan: Plan, source: str, stdin: str, limits: Limits) -> Ran:
    program, given = (text.encode("utf-8", "surrogatepass") for text in (source, stdin))
    user = unused_user()
    with contextlib.ExitStack() as stack:
        base = None if plan.namespaces else stack.enter_context(fresh_directory(program, user))
        ended = supervised(spec_of(plan, limits, user, base), program, given)
    return _judge(ended, limits)


def _judge(ended: Ended, limits: Limits) -> Ran:
    code = os.waitstatus_to_exitcode(ended.status) if ended.status is not None else None
    outcome: Outcome
    reason = ended.reason
    if ended.by != "ended":
        outcome = ended.by
        reason = reason or f"its processes together exceed the limit: {outcome.replace('_', ' ')}"
    elif code == 0:
        outcome = "ok"
    elif code is None or code > 0:
        last = ended.stderr.decode("utf-8", "replace").rstrip().rpartition("\n")[2]
        outcome = "out_of_memory" if last.startswith("MemoryError") else "failed"
    else:
        # The kernel sends the first at the limit, and the second to a process that goes on.
        spent = -code == _SIGXCPU or (-code == _SIGKILL and ended.cpu_seconds >= limits.cpu_seconds)
        outcome = "out_of_cpu" if spent else "killed"
    return Ran(
        outcome=outcome,
        stdout=ended.stdout.decode("utf-8", "replace"),
        stderr=ended.stderr.decode("utf-8", "replace"),
        exit_code=code if code is not None and code >= 0 else None,
        signal=-code if code is not None and code < 0 else None,
        wall_seconds=ended.wall_seconds,
        cpu_seconds=ended.cpu_seconds,
        reason=reason,
    )


_SIGXCPU, _SIGKILL = 24, 9


_measuring = threading.Lock()


def _plan() -> Plan:
    if not sys.platform.startswith("linux"):
        raise EasyDistillError(
            f"programs that a model wrote run in a sandbox of Linux, and this is {sys.platform}\n"
            "    → run this job on Linux, in a container or a virtual machine, or leave the reward out"
        )
    with _measuring:
        return _measured()[0]


@functools.cache
def _measured() -> tuple[Plan, dict[str, bool | str]]:
    """The strictest plan that works here, and what a program cannot do under it."""
    executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    library = str(Path(os.__file__).resolve().parent)
    prefixes = tuple(os.path.realpath(path) for path in (sys.base_prefix, sys.base_exec_prefix, library, executable))
    strictest = Plan(True, True, False, executable, tuple(path for path in prefixes if path != "/"))
    return measure(
        [
            strictest,
            replace(strictest, filter_calls=False),
            *(
                replace(strictest, namespaces=False, filter_calls=calls, landlock=files)
                for calls, files in ((True, True), (True, False), (False, True), (False, False))
            ),
        ]
    )


def measure(plans: Iterable[Plan]) -> tuple[Plan, dict[str, bool | str]]:
    """Of plans, strictest first, the first under which a program starts; and what that program could not do.

    Raises:
        EasyDistillError: there is none.
    """
    refusals: list[str] = []
    for plan in plans:
        with (
            tempfile.NamedTemporaryFile() as private,
            tempfile.NamedTemporaryFile() as public,
            subprocess.Popen(_WAITING, stdin=subprocess.PIPE) as other,
        ):
            Path(public.name).chmod(0o666)
            program = _ATTEMPTS.format(private=private.name, public=public.name, pid=other.pid)
            try:
                ran = _run(plan, program, "", _DEFAULT)
            except SupervisorFailed as error:
                refusals.append(str(error))
                continue
        if ran.outcome == "ok":
            plan = replace(plan, refused=refusals[0] if refusals else "")
            able = json.loads(ran.stdout)
            # A signal that arrived killed it, and else it ended with its input.
            able["no_signals_outside"] |= other.returncode != 0
            return plan, _described(plan) | {name: not was for name, was in able.items()}
        refusals.append(f"{ran.outcome}: {ran.stderr[-500:]}")
    raise EasyDistillError(
        f"the sandbox for programs that a model wrote does not start: {refusals[-1]}\n"
        "    → this Python, its libraries and the directory for temporary files must be readable by every user "
        "where namespaces are not allowed: install Python elsewhere than in a private home, or allow namespaces"
    )


def _described(plan: Plan) -> dict[str, bool | str]:
    return {
        "namespaces": plan.namespaces or plan.refused or "not tried",
        "system_call_filter": plan.filter_calls,
        "landlock": "not needed in namespaces" if plan.namespaces else plan.landlock,
        "own_user": unused_user() is not None,
        "directory": "in memory, limited by the kernel" if plan.namespaces else "on disk, watched",
    }


_WAITING = [sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"]
"""Another process of this user."""
_ATTEMPTS = """\
import fcntl, json, os, signal, socket
def able(attempt):
    try:
        attempt()
    except OSError:
        return False
    return True
def connect():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(("127.0.0.1", 9))
def have_signalled():
    ends = os.pipe()
    fcntl.fcntl(ends[0], fcntl.F_SETOWN, {pid})
    fcntl.fcntl(ends[0], fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(ends[0], fcntl.F_SETFL, os.O_ASYNC)
    os.write(ends[1], b"x")
# Where this process has the other's number, the other is not to be seen.
apart = os.getpid() == {pid}
# Whether that one reached it, it shows itself.
apart or able(have_signalled)
print(json.dumps({{
    "no_network": able(connect),
    "no_signals_outside": not apart and able(lambda: os.kill({pid}, 0)),
    "no_private_files": able(lambda: open({private!r}, "rb").close()),
    "no_files_outside": able(lambda: open({public!r}, "rb").close()),
    "no_writing_outside": able(lambda: open({public!r}, "r+b").close()),
}}))
"""


def protections() -> dict[str, bool | str]:
    """What holds on this machine, measured by a program that tries. The first call takes up to a second.

    `namespaces` is True or why not; `no_…` is whether a program failed to: reach a network (loopback included), signal
    another process of this user, itself or by the kernel's hand (SIGIO), read a private or a public file elsewhere,
    write to a public one.

    Raises:
        EasyDistillError: as `run_program`.
    """
    _plan()
    with _measuring:
        return dict(_measured()[1])
