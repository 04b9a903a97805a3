"""One run of a program under a given isolation: from its source to a `RunResult`."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from typing import Literal

from .controller import RawResult, run_supervised
from .directory import fresh_directory
from .spec import Isolation, Limits, make_spec, unused_user_id

Outcome = Literal["ok", "failed", "timed_out", "out_of_cpu", "out_of_memory", "too_much_output", "killed"]


@dataclass(frozen=True)
class RunResult:
    """How a program ended and what it printed."""

    outcome: Outcome
    stdout: str
    stderr: str
    """Like `stdout`, cut off at the limit; bytes that are not UTF-8 are replaced."""
    exit_code: int | None
    """None if a signal ended the program."""
    signal: int | None
    wall_seconds: float
    cpu_seconds: float
    """Of all its processes, including the start of Python."""
    reason: str = ""
    """The limit that ended it, if one did."""


def execute(isolation: Isolation, source: str, stdin: str, limits: Limits) -> RunResult:
    """Run a program and wait until all its processes have ended.

    Raises:
        SupervisorError: the program could not be started under this isolation.
    """
    program, given = (text.encode("utf-8", "surrogatepass") for text in (source, stdin))
    user = unused_user_id()
    with contextlib.ExitStack() as stack:
        base = None if isolation.namespaces else stack.enter_context(fresh_directory(program, user))
        raw = run_supervised(make_spec(isolation, limits, user, base), program, given)
    return _interpret(raw, limits)


def _interpret(raw: RawResult, limits: Limits) -> RunResult:
    code = os.waitstatus_to_exitcode(raw.status) if raw.status is not None else None
    reason = raw.reason
    if raw.ended_by != "ended":
        reason = reason or f"all its processes together exceeded the limit: {raw.ended_by.replace('_', ' ')}"
    return RunResult(
        outcome=_outcome(raw, code, limits),
        stdout=raw.stdout.decode("utf-8", "replace"),
        stderr=raw.stderr.decode("utf-8", "replace"),
        exit_code=code if code is not None and code >= 0 else None,
        signal=-code if code is not None and code < 0 else None,
        wall_seconds=raw.wall_seconds,
        cpu_seconds=raw.cpu_seconds,
        reason=reason,
    )


def _outcome(raw: RawResult, code: int | None, limits: Limits) -> Outcome:
    if raw.ended_by != "ended":
        return raw.ended_by
    if code == 0:
        return "ok"
    if code is None or code > 0:
        last_line = raw.stderr.decode("utf-8", "replace").rstrip().rpartition("\n")[2]
        return "out_of_memory" if last_line.startswith("MemoryError") else "failed"
    # At the limit the kernel sends SIGXCPU, and SIGKILL if the process continues.
    out_of_cpu = -code == signal.SIGXCPU or (-code == signal.SIGKILL and raw.cpu_seconds >= limits.cpu_seconds)
    return "out_of_cpu" if out_of_cpu else "killed"
