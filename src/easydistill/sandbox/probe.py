"""Finds the strictest isolation that works on this machine, and measures what it keeps a program from doing.

Both are measured once per process, by running a program that tries. Any thread may ask.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from .errors import SandboxError, SupervisorError
from .execution import execute
from .spec import Isolation, Limits, unused_user_id

Protections = dict[str, bool | str]
_measuring = threading.Lock()


def strictest_isolation() -> Isolation:
    """The strictest isolation under which programs start on this machine.

    Raises:
        SandboxError: programs cannot be run here.
    """
    return _measured_here()[0]


def protections() -> Protections:
    """What holds on this machine, measured by a program that tries. The first call takes up to a second.

    Returns:
        `namespaces`: True, or why they cannot be used. `system_call_filter`, `landlock`, `own_user` and `directory`:
        the other mechanisms. `no_…`: True if the program failed to reach a network (including loopback), to signal
        another process of this user (directly or through SIGIO), to read a private or a public file elsewhere, or to
        write to a public file.

    Raises:
        SandboxError: programs cannot be run here.
    """
    return dict(_measured_here()[1])


def _measured_here() -> tuple[Isolation, Protections]:
    if not sys.platform.startswith("linux"):
        hint = "run it on Linux, for example in a container or a virtual machine"
        raise SandboxError(f"the sandbox for generated programs needs Linux, and this is {sys.platform}", hint)
    with _measuring:
        return measured()


@functools.cache
def measured() -> tuple[Isolation, Protections]:
    """`measure` for every isolation that this machine may support, strictest first."""
    executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    library = str(Path(os.__file__).resolve().parent)
    prefixes = tuple(os.path.realpath(path) for path in (sys.base_prefix, sys.base_exec_prefix, library, executable))
    strictest = Isolation(True, True, False, executable, tuple(path for path in prefixes if path != "/"))
    return measure(
        [
            strictest,
            replace(strictest, seccomp=False),
            *(
                replace(strictest, namespaces=False, seccomp=seccomp, landlock=landlock)
                for seccomp, landlock in ((True, True), (True, False), (False, True), (False, False))
            ),
        ]
    )


def measure(candidates: Iterable[Isolation]) -> tuple[Isolation, Protections]:
    """The first candidate under which a program starts, and what the program could not do under it.

    Args:
        candidates: strictest first.

    Raises:
        SandboxError: programs start under none of them.
    """
    refusals: list[str] = []
    for isolation in candidates:
        with (
            tempfile.NamedTemporaryFile() as private,
            tempfile.NamedTemporaryFile() as public,
            subprocess.Popen(_BYSTANDER, stdin=subprocess.PIPE) as bystander,
        ):
            Path(public.name).chmod(0o666)
            program = _PROBE.format(private=private.name, public=public.name, pid=bystander.pid)
            try:
                result = execute(isolation, program, "", Limits())
            except SupervisorError as error:
                refusals.append(error.problem)
                continue
        if result.outcome == "ok":
            isolation = replace(isolation, refusal=refusals[0] if refusals else "")
            succeeded = json.loads(result.stdout)
            # The bystander exits with 0 at the end of its input, unless a signal reached it.
            succeeded["no_signals_outside"] |= bystander.returncode != 0
            return isolation, _mechanisms(isolation) | {name: not done for name, done in succeeded.items()}
        refusals.append(f"{result.outcome}: {result.stderr[-500:]}")
    raise SandboxError(
        f"the sandbox for generated programs does not start: {refusals[-1]}",
        "without namespaces, this Python, its libraries and the directory for temporary files must be readable by "
        "every user: install Python outside a private home directory, or allow namespaces",
    )


def _mechanisms(isolation: Isolation) -> Protections:
    return {
        "namespaces": isolation.namespaces or isolation.refusal or "not tried",
        "system_call_filter": isolation.seccomp,
        "landlock": "not needed in namespaces" if isolation.namespaces else isolation.landlock,
        "own_user": unused_user_id() is not None,
        "directory": "in memory, limited by the kernel" if isolation.namespaces else "on disk, watched",
    }


_BYSTANDER = [sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"]
"""Another process of this user, which the probe tries to signal."""
_PROBE = """\
import fcntl, json, os, signal, socket
def succeeds(attempt):
    try:
        attempt()
    except OSError:
        return False
    return True
def connect():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(("127.0.0.1", 9))
def signal_through_the_kernel():
    ends = os.pipe()
    fcntl.fcntl(ends[0], fcntl.F_SETOWN, {pid})
    fcntl.fcntl(ends[0], fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(ends[0], fcntl.F_SETFL, os.O_ASYNC)
    os.write(ends[1], b"x")
# In a PID namespace this process may have the bystander's number: then the bystander is out of sight.
invisible = os.getpid() == {pid}
# Whether the signal arrived shows in the bystander's exit code.
invisible or succeeds(signal_through_the_kernel)
print(json.dumps({{
    "no_network": succeeds(connect),
    "no_signals_outside": not invisible and succeeds(lambda: os.kill({pid}, 0)),
    "no_private_files": succeeds(lambda: open({private!r}, "rb").close()),
    "no_files_outside": succeeds(lambda: open({public!r}, "rb").close()),
    "no_writing_outside": succeeds(lambda: open({public!r}, "r+b").close()),
}}))
"""
