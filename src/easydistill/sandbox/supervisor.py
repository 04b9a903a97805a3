"""The process between easydistill and a program it does not trust: it starts it, watches it, and leaves nothing of it.

It is started afresh (by `sandbox.py`) with two descriptors. From the first it reads a `Spec` and the program; when that
pipe closes, because the caller says so or is no more, all ends. To the second it writes lines of a name and a value:
`started`; `status` of the program, as wait(2) gives it; `cpu` seconds, and last `by`, what ended it, when every process
that the program ever started is dead; or `error`.

With namespaces: this process → process 1 of a new PID namespace, which makes the file system → the program. Process 1
ends with the program, and with it the kernel ends all in the namespace. Without: this process adopts whatever the
program leaves (PR_SET_CHILD_SUBREAPER) and kills until there is nothing left to adopt.

Imports are most of the time that a run costs: so no pathlib, dataclasses, typing or json here.
"""
# ruff: noqa: PTH116, PTH123, PTH208, SIM105

from __future__ import annotations

import marshal
import os
import resource
import select
import signal
import struct
from types import SimpleNamespace

from . import syscalls
from .seccomp import restrict_calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from .spec import Spec

_TICK = 0.02
"""Seconds between two looks at memory and time."""
_INSIDE = 1000
"""The id of an ordinary user in a user namespace of its own."""


def main(control: int, report: int) -> None:
    """Serve one program. Arguments: the descriptors to read from and to write to."""
    for descriptor in (control, report):
        os.set_inheritable(descriptor, False)
    try:
        with os.fdopen(os.dup(control), "rb") as stream:
            sizes = struct.unpack("QQ", stream.read(16))
            told, program = (stream.read(size) for size in sizes)
        fields = marshal.loads(told)
        limits = SimpleNamespace(**fields.pop("limits"))
        spec: Spec = SimpleNamespace(**fields, limits=limits)  # type: ignore[assignment]
        supervise(spec, program, control, report)
    except Exception as error:  # whatever it is, the caller is told, and raises it
        tell(report, "error", _said(error))


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}"[:1000].split())


def tell(report: int, name: str, value: object) -> None:
    # Below PIPE_BUF, so lines of several processes do not mix.
    os.write(report, f"{name} {value}\n".encode("utf-8", "replace"))


def supervise(spec: Spec, program: bytes, control: int, report: int) -> None:
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    busy = _tasks_of_user(spec)
    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(woken)
    if spec.namespaces:
        if os.geteuid():
            syscalls.become_user_of_namespace(_INSIDE)
        syscalls.unshare(syscalls.CLONE_NEWPID)
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        try:  # where memory is short, the program goes first; no promise rests on it
            syscalls.write("/proc/self/oom_score_adj", b"1000")
        except OSError:
            pass
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            if spec.namespaces:
                _be_first(spec, program, report, busy)
            _be_program(spec, report, busy)
        except BaseException as error:
            tell(report, "error", _said(error))
            os._exit(1)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    used = Used()
    ended, status = _watch(spec, child, control, wake, used)
    _kill_all(spec, child if ended != "ended" else None)
    if status is not None and not spec.namespaces:
        tell(report, "status", status)
    # What process 1 did not wait for before it was killed is not counted there.
    tell(report, "cpu", max(used.seconds, _waited_for()))
    tell(report, "by", ended)


class Used:
    """Processor time of all processes, as last seen."""

    seconds = 0.0


def _waited_for() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _watch(spec: Spec, child: int, control: int, wake: int, used: Used) -> tuple[str, int | None]:
    """Wait until the program ends, the caller has enough, or all its processes together exceed a limit.

    Returns:
        "ended", "stopped", "out_of_cpu", "out_of_memory" or "killed"; and the child's status where it ended.
    """
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wake, select.POLLIN)
    while True:
        ready = poll.poll(_TICK * 1000)
        if any(descriptor == control for descriptor, _ in ready):
            return "stopped", None
        if ready:
            os.read(wake, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == child:
                return "ended", status
            if pid == 0:
                break
        excess = _excess(spec, child, used)
        if excess:
            return excess, None


def _excess(spec: Spec, child: int, used: Used) -> str:
    first = {child} if spec.namespaces else set()
    memory = tasks = ticks = 0
    for pid in descendants():
        try:
            fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
            held = _text(f"/proc/{pid}/status")
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += sum(map(int, fields[11:15]))
        if pid not in first:
            tasks += int(fields[17])
            words = [line.split() for line in held.splitlines() if line.startswith(("RssAnon:", "RssShmem:"))]
            memory += sum(int(word[1]) << 10 for word in words)
    if memory > spec.limits.memory:
        return "out_of_memory"
    used.seconds = max(used.seconds, ticks / _TICKS + _waited_for())
    if used.seconds > spec.limits.cpu_seconds:
        return "out_of_cpu"
    # The kernel's own limit comes first, wherever it can be told from the user's other processes.
    return "killed" if tasks > spec.limits.processes + 1 else ""


_TICKS = os.sysconf("SC_CLK_TCK")


def _text(path: str) -> str:
    with open(path, errors="replace") as stream:
        return stream.read()


def descendants() -> list[int]:
    """This process's children, theirs, and so on. What starts meanwhile may be missing."""
    found: list[int] = [os.getpid()]
    parents: dict[int, int] | None = None
    for pid in found:
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                found += map(int, _text(f"/proc/{pid}/task/{thread}/children").split())
        except (FileNotFoundError, ProcessLookupError):
            if pid == os.getpid():  # a kernel without these lists
                parents = _parents()
                break
    if parents is not None:
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def _parents() -> dict[int, int]:
    parents = {}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            text = _text(f"/proc/{pid}/stat")
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(pid)] = int(text.rpartition(")")[2].split()[1])
    return parents


def _kill_all(spec: Spec, child: int | None) -> None:
    """Return when no descendant is left, running or dead. `child` is None where it has been waited for."""
    while True:
        if spec.user is not None and not spec.namespaces:
            _kill_user(spec.user)
        # Stopped first, so that none starts another while its like are killed.
        for sent in (signal.SIGSTOP, signal.SIGKILL):
            for pid in descendants() if not spec.namespaces else [child] if child else []:
                try:
                    os.kill(pid, sent)
                except ProcessLookupError:
                    continue
        try:
            while os.waitpid(-1, os.WNOHANG if not spec.namespaces else 0)[0]:
                pass
        except ChildProcessError:
            return
        select.select([], [], [], 0.001)


def _kill_user(user: int) -> None:
    """Kill all processes of a user at once: none can be faster. The user is this run's own."""
    killer = os.fork()
    if killer == 0:
        try:
            os.setresuid(user, user, user)
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    os.waitpid(killer, 0)


def _be_first(spec: Spec, program: bytes, report: int, busy: int) -> NoReturn:
    """Process 1 of the namespace: make what the program sees, start it, and end with it."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setsid()
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS)
    owner = spec.user if spec.user is not None else os.getuid()
    syscalls.build_root(spec.readable, program, owner, spec.limits.directory_bytes, spec.limits.directory_files)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    child = os.fork()
    if child == 0:
        _be_program(spec, report, busy)
    while True:
        pid, status = os.wait()
        if pid == child:
            tell(report, "status", status)
            os._exit(0)


def _be_program(spec: Spec, report: int, busy: int) -> NoReturn:
    """Give up everything, then become the program."""
    os.setsid()
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.umask(0o077)
    os.chdir(spec.directory)
    if spec.user is not None:
        os.setgroups([])
        os.setresgid(spec.user, spec.user, spec.user)
        os.setresuid(spec.user, spec.user, spec.user)
    if not spec.namespaces:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    seconds = int(spec.limits.cpu_seconds) + (spec.limits.cpu_seconds % 1 > 0)
    _limit(resource.RLIMIT_CPU, seconds, seconds + 1)
    _limit(resource.RLIMIT_AS, spec.limits.memory)
    _limit(resource.RLIMIT_FSIZE, spec.limits.file_size)
    _limit(resource.RLIMIT_NPROC, spec.limits.processes + busy)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_MEMLOCK, 0)
    _limit(resource.RLIMIT_MSGQUEUE, 0)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    if spec.landlock:
        syscalls.restrict_files([*spec.readable, spec.command[-1]], spec.directory)
    _limit(resource.RLIMIT_NOFILE, spec.limits.open_files)
    if spec.filter_calls:
        restrict_calls(only_own_signals=spec.user is None and not spec.namespaces)
    tell(report, "started", "")
    try:
        os.execve(spec.command[0], spec.command, spec.environment)
    except OSError as error:
        tell(report, "error", f"{spec.command[0]}: {error.strerror}")
        os._exit(1)


def _tasks_of_user(spec: Spec) -> int:
    """What the user runs already, where the limit on processes would count it. A user namespace counts by itself."""
    release = [int(part) for part in os.uname().release.split("-")[0].split(".")[:2]]
    if spec.user is not None or (spec.namespaces and release >= [5, 14]):
        return 0
    count = 0
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{pid}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{pid}/task"))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return count


def _limit(kind: int, value: int, hard: int | None = None) -> None:
    most = resource.getrlimit(kind)[1]
    wanted = value if hard is None else hard
    ceiling = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(kind, (min(value, ceiling), ceiling))
