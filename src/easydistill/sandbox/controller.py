"""The calling process's side of a run: starts a supervisor, sends it the program, reads the output, stops it in time.

The thread that calls waits for one supervisor, in one loop over its pipes. No signals, and this process does not fork.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from .directory import exceeded_limit
from .errors import SupervisorError
from .spec import RunSpec

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
"""Time for a supervisor to end all processes of the program, before it is killed itself."""
_WATCH_SECONDS = 0.05
"""Time between two checks of a directory on disk."""
_CHUNK_BYTES = 1 << 16
_BOOTSTRAP = """\
import sys, types
sys.modules["sandbox"] = package = types.ModuleType("sandbox")
package.__path__ = [sys.argv[1]]
from sandbox.supervisor import main
main(int(sys.argv[2]), int(sys.argv[3]))
"""
"""Loads the supervisor without the rest of this package, whose imports would make every run slower."""
EndedBy = Literal["ended", "timed_out", "out_of_cpu", "out_of_memory", "too_much_output", "killed"]
"""`ended` if the program ended by itself or by a signal; otherwise the limit for which it was stopped."""


@dataclass(frozen=True)
class RawResult:
    """What is known of a run once its supervisor has ended."""

    ended_by: EndedBy
    reason: str
    status: int | None
    """As wait(2) gives it. None if the program did not end by itself."""
    stdout: bytes
    stderr: bytes
    wall_seconds: float
    cpu_seconds: float


def run_supervised(spec: RunSpec, program: bytes, stdin: bytes) -> RawResult:
    """Run one program under one supervisor, and wait until all processes of both have ended.

    Raises:
        SupervisorError: the program did not start.
    """
    session = _Session(spec, program, stdin)
    try:
        session.run()
    finally:
        session.close()
    return session.result()


class _Session:
    """One supervisor and its pipes: `control` to it, `report` from it, and the program's standard three."""

    def __init__(self, spec: RunSpec, program: bytes, stdin: bytes) -> None:
        self._seconds, self._output_bytes = spec.limits.seconds, spec.limits.output_bytes
        self._watched = None if spec.namespaces else Path(spec.directory)
        self._directory_limits = spec.limits.directory_bytes, spec.limits.directory_files
        self._reported: dict[str, str] = {}
        self._ended_by: EndedBy = "ended"
        self._reason = ""
        self._created = time.monotonic()
        self._started: float | None = None
        self._wall_seconds = 0.0
        control, self._control = os.pipe()
        self._report, report = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, str(Path(__file__).parent), str(control), str(report)],
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=(control, report),
                start_new_session=True,
                cwd="/",
                env={name: value for name, value in spec.environment.items() if name == "LD_LIBRARY_PATH"},
            )
        except BaseException:
            os.close(self._control)
            os.close(self._report)
            raise
        finally:
            os.close(control)
            os.close(report)
        out, err, into = self._process.stdout, self._process.stderr, self._process.stdin
        assert out is not None and err is not None
        self._open = {self._control, self._report, out.fileno(), err.fileno()}
        self._received = {self._report: bytearray(), out.fileno(): bytearray(), err.fileno(): bytearray()}
        self._outputs = (out.fileno(), err.fileno())
        self._unsent = {self._control: memoryview(spec.packed(program))}
        if into is not None:
            self._open.add(into.fileno())
            self._unsent[into.fileno()] = memoryview(stdin)
        self._poll = select.poll()
        for descriptor in self._open:
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLOUT if descriptor in self._unsent else select.POLLIN)

    def run(self) -> None:
        """Serve all pipes until the supervisor has closed its own and the program's output is read to the end."""
        checked = time.monotonic()
        stopping_since: float | None = None
        while self._open & set(self._received):
            now = time.monotonic()
            if self._ended_by == "ended":
                checked = self._check_limits(now, checked)
            if self._ended_by != "ended" or self._report not in self._open:
                stopping_since = now if stopping_since is None else stopping_since
                if now > stopping_since + _STOP_SECONDS:
                    # Happens only if the system is overloaded, or if something else stopped the supervisor.
                    self._reason += "; its supervisor had to be killed"
                    return
            for descriptor, _ in self._poll.poll(1000 * self._poll_seconds(now)):
                if descriptor in self._open:
                    self._serve(descriptor)

    def _check_limits(self, now: float, checked: float) -> float:
        """Stop the program if its time is up or its directory is full; returns when the directory was last checked."""
        if self._started is None and now > self._created + _START_SECONDS:
            self._stop("timed_out", "its supervisor did not start")
        elif self._started is not None and now > self._started + self._seconds and "status" not in self._reported:
            self._stop("timed_out", f"more than {self._seconds:g} seconds")
        elif self._watched is not None and now > checked + _WATCH_SECONDS and self._report in self._open:
            if reason := exceeded_limit(self._watched, *self._directory_limits):
                self._stop("too_much_output", reason)
            return now
        return checked

    def _poll_seconds(self, now: float) -> float:
        if self._watched is not None:
            return _WATCH_SECONDS
        left = self._started + self._seconds - now if self._started is not None else 1.0
        return min(max(left, 0.0), 1.0) + 0.001

    def _serve(self, descriptor: int) -> None:
        if descriptor in self._unsent:
            self._send(descriptor)
            return
        try:
            chunk = os.read(descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return
        if not chunk:
            self._poll.unregister(descriptor)
            self._close(descriptor)
        elif descriptor == self._report:
            self._receive_report(chunk)
        else:
            self._receive_output(descriptor, chunk)

    def _send(self, descriptor: int) -> None:
        try:
            sent = os.write(descriptor, self._unsent[descriptor][:_CHUNK_BYTES])
        except BlockingIOError:
            return
        except BrokenPipeError:
            sent = len(self._unsent[descriptor])
        self._unsent[descriptor] = self._unsent[descriptor][sent:]
        if not self._unsent[descriptor]:
            del self._unsent[descriptor]
            self._poll.unregister(descriptor)
            if descriptor != self._control:  # which stays open for as long as the program may run
                self._close(descriptor)

    def _receive_report(self, chunk: bytes) -> None:
        received = self._received[self._report]
        received += chunk
        while b"\n" in received:
            line, _, rest = bytes(received).partition(b"\n")
            received[:] = rest
            name, _, value = line.decode().partition(" ")
            # The first line of a name counts: after an error, process 1 reports only that its child has ended.
            self._reported.setdefault(name, value)
            if self._started is None and "started" in self._reported:
                self._started = time.monotonic()
            elif self._started is not None:
                self._wall_seconds = self._wall_seconds or time.monotonic() - self._started

    def _receive_output(self, descriptor: int, chunk: bytes) -> None:
        received = self._received[descriptor]
        too_much = len(received) + len(chunk) > self._output_bytes
        received += chunk[: self._output_bytes - len(received)]
        if too_much and self._ended_by == "ended":
            name = "standard output" if descriptor == self._outputs[0] else "standard error"
            self._stop("too_much_output", f"more than {self._output_bytes} bytes of {name}")

    def _stop(self, ended_by: EndedBy, reason: str) -> None:
        """Ask the supervisor to end everything, by closing its control pipe."""
        self._ended_by, self._reason = ended_by, reason
        if self._control in self._open:
            if self._unsent.pop(self._control, None) is not None:
                self._poll.unregister(self._control)
            self._close(self._control)

    def _close(self, descriptor: int) -> None:
        self._open.discard(descriptor)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None and not stream.closed and stream.fileno() == descriptor:
                stream.close()
                return
        os.close(descriptor)

    def close(self) -> None:
        """Wait for the supervisor, or kill it, and close all pipes, whatever happened before."""
        if self._control in self._open:
            self._close(self._control)
        try:
            self._process.wait(_STOP_SECONDS if "by" not in self._reported else None)
        except subprocess.TimeoutExpired:
            self._process.kill()
        finally:
            with contextlib.suppress(ProcessLookupError):
                if self._process.poll() is None:
                    self._process.kill()
            self._process.wait()
            for descriptor in list(self._open):
                self._close(descriptor)

    def result(self) -> RawResult:
        """What came of the run, once it is closed.

        Raises:
            SupervisorError: the program did not start.
        """
        reported = self._reported
        if "error" in reported or self._started is None:
            stderr = bytes(self._received[self._outputs[1]]).decode("utf-8", "replace").strip()[-500:]
            why = reported.get("error") or self._reason or stderr or "it was killed"
            raise SupervisorError(f"the sandbox did not start: {why}")
        ended_by, reason = self._ended_by, self._reason
        if ended_by == "timed_out" and reported.get("by") == "ended":
            ended_by, reason = "ended", ""  # it ended at the last moment
        elif ended_by == "ended":
            ended_by = cast(EndedBy, reported.get("by", "killed"))
        status = int(reported["status"]) if "status" in reported and ended_by != "timed_out" else None
        out, err = (bytes(self._received[descriptor]) for descriptor in self._outputs)
        cpu_seconds = float(reported.get("cpu", 0))
        return RawResult(ended_by, reason, status, out, err, self._wall_seconds, cpu_seconds)
