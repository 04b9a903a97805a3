"""The caller's side of a supervisor: start it, feed it, read what the program prints, stop it in time.

One call is one thread that waits for one supervisor, in one loop over its pipes. No signals, no fork of this process.
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

from easydistill.errors import EasyDistillError

from .directory import excess
from .spec import Spec

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
"""Time for a supervisor to end all that it has to, before it is killed itself."""
_WATCH_SECONDS = 0.05
_PIECE = 1 << 16
_BEGIN = """\
import sys, types
sys.modules["sandbox"] = package = types.ModuleType("sandbox")
package.__path__ = [sys.argv[1]]
from sandbox.supervisor import main
main(int(sys.argv[2]), int(sys.argv[3]))
"""
"""Loads the supervisor without what its package loads."""
By = Literal["ended", "timed_out", "out_of_cpu", "out_of_memory", "too_much_output", "killed"]


class SupervisorFailed(EasyDistillError, RuntimeError):
    """The sandbox could not be set up as it was asked to: nothing that the program did."""


@dataclass(frozen=True)
class Ended:
    """What a supervisor and its program left."""

    by: By
    reason: str
    status: int | None
    """As wait(2) gives it. None where the program did not end by itself."""
    stdout: bytes
    stderr: bytes
    wall_seconds: float
    cpu_seconds: float


def supervised(spec: Spec, program: bytes, stdin: bytes) -> Ended:
    """Run one program under one supervisor, and wait until nothing of both is left.

    Raises:
        SupervisorFailed: the program did not start.
    """
    conversation = _Conversation(spec, program, stdin)
    try:
        conversation.hold()
    finally:
        conversation.close()
    return conversation.result()


class _Conversation:
    def __init__(self, spec: Spec, program: bytes, stdin: bytes) -> None:
        self._seconds, self._output_bytes = spec.limits.seconds, spec.limits.output_bytes
        self._watched = None if spec.namespaces else Path(spec.directory)
        self._most = spec.limits.directory_bytes, spec.limits.directory_files
        self._told: dict[str, str] = {}
        self._by: By = "ended"
        self._reason = ""
        self._started: float | None = None
        self._wall = 0.0
        folder = str(Path(__file__).parent)
        control, self._control = os.pipe()
        self._report, report = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BEGIN, folder, str(control), str(report)],
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
        self._read = {self._report: bytearray(), out.fileno(): bytearray(), err.fileno(): bytearray()}
        self._outputs = (out.fileno(), err.fileno())
        self._unsent = {self._control: memoryview(spec.packed(program))}
        if into is not None:
            self._open.add(into.fileno())
            self._unsent[into.fileno()] = memoryview(stdin)
        self._poll = select.poll()
        for descriptor in self._open:
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLOUT if descriptor in self._unsent else select.POLLIN)

    def hold(self) -> None:
        """Serve all pipes until the supervisor has closed its own, and the program's are read to their end."""
        begun = looked = time.monotonic()
        stopped: float | None = None
        while self._open & set(self._read):
            now = time.monotonic()
            if self._by == "ended":
                if self._started is None and now > begun + _START_SECONDS:
                    self._stop("timed_out", "its supervisor did not start")
                elif self._started is not None and now > self._started + self._seconds and "status" not in self._told:
                    self._stop("timed_out", f"more than {self._seconds:g} seconds")
                elif self._watched is not None and now > looked + _WATCH_SECONDS and self._report in self._open:
                    if reason := excess(self._watched, *self._most):
                        self._stop("too_much_output", reason)
                    looked = time.monotonic()
            if self._by != "ended" or self._report not in self._open:
                stopped = now if stopped is None else stopped
                if now > stopped + _STOP_SECONDS:
                    # Not reached unless the system is out of breath, or somebody stopped the supervisor.
                    self._reason += "; its supervisor had to be killed"
                    return
            for descriptor, _ in self._poll.poll(1000 * self._patience(now)):
                self._serve(descriptor)

    def _patience(self, now: float) -> float:
        if self._watched is not None:
            return _WATCH_SECONDS
        left = self._started + self._seconds - now if self._started is not None else 1.0
        return min(max(left, 0.0), 1.0) + 0.001

    def _serve(self, descriptor: int) -> None:
        if descriptor not in self._open:
            return
        if descriptor in self._unsent:
            try:
                sent = os.write(descriptor, self._unsent[descriptor][:_PIECE])
            except BlockingIOError:
                return
            except BrokenPipeError:
                sent = len(self._unsent[descriptor])
            self._unsent[descriptor] = self._unsent[descriptor][sent:]
            if not self._unsent[descriptor]:
                del self._unsent[descriptor]
                self._poll.unregister(descriptor)
                if descriptor != self._control:  # which stays open for as long as the program may run
                    self._shut(descriptor)
            return
        try:
            piece = os.read(descriptor, _PIECE)
        except BlockingIOError:
            return
        if not piece:
            self._poll.unregister(descriptor)
            self._shut(descriptor)
        elif descriptor == self._report:
            self._hear(piece)
        else:
            kept = self._read[descriptor]
            over = len(kept) + len(piece) > self._output_bytes
            kept += piece[: self._output_bytes - len(kept)]
            if over and self._by == "ended":
                name = "standard output" if descriptor == self._outputs[0] else "standard error"
                self._stop("too_much_output", f"more than {self._output_bytes} bytes of {name}")

    def _hear(self, piece: bytes) -> None:
        heard = self._read[self._report]
        heard += piece
        while b"\n" in heard:
            line, _, rest = bytes(heard).partition(b"\n")
            heard[:] = rest
            name, _, value = line.decode().partition(" ")
            # The first word counts: after an error, that of process 1 says only that its child is gone.
            self._told.setdefault(name, value)
            if self._started is None and "started" in self._told:
                self._started = time.monotonic()
            elif self._started is not None:
                self._wall = self._wall or time.monotonic() - self._started

    def _stop(self, by: By, reason: str) -> None:
        self._by, self._reason = by, reason
        if self._control in self._open:
            if self._unsent.pop(self._control, None) is not None:
                self._poll.unregister(self._control)
            self._shut(self._control)

    def _shut(self, descriptor: int) -> None:
        self._open.discard(descriptor)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None and not stream.closed and stream.fileno() == descriptor:
                stream.close()
                return
        os.close(descriptor)

    def close(self) -> None:
        """Leave nothing open and nobody running, whatever happened. Waits for the supervisor."""
        if self._control in self._open:
            self._shut(self._control)
        try:
            self._process.wait(_STOP_SECONDS if "by" not in self._told else None)
        except subprocess.TimeoutExpired:
            self._process.kill()
        finally:
            with contextlib.suppress(ProcessLookupError):
                if self._process.poll() is None:
                    self._process.kill()
            self._process.wait()
            for descriptor in list(self._open):
                self._shut(descriptor)

    def result(self) -> Ended:
        told = self._told
        if "error" in told or self._started is None:
            said = bytes(self._read[self._outputs[1]]).decode("utf-8", "replace").strip()[-500:]
            raise SupervisorFailed(
                f"the sandbox did not start: {told.get('error') or self._reason or said or 'it was killed'}"
            )
        by, reason = self._by, self._reason
        if by == "timed_out" and told.get("by") == "ended":
            by, reason = "ended", ""  # at the last moment
        elif by == "ended":
            by = cast(By, told.get("by", "killed"))
        status = int(told["status"]) if "status" in told and by != "timed_out" else None
        out, err = (bytes(self._read[descriptor]) for descriptor in self._outputs)
        return Ended(by, reason, status, out, err, self._wall, float(told.get("cpu", 0)))
