"""The process between the caller and an untrusted program: it starts the program, watches it, and ends all of it.

`controller.py` starts a new one for every run, with two descriptors. From the first it reads a `RunSpec` and the
program; when that pipe closes, because the caller closed it or has died, everything ends. To the second it writes lines
of a name and a value: `started`; `status` of the program, as wait(2) gives it; `cpu` seconds; and last `by`, what ended
the program, once every process that it ever started is dead. Or it writes `error`.

With namespaces: this process → process 1 of a new PID namespace, which builds the file system → the program. Process 1
ends with the program, and the kernel then ends everything in the namespace. Without: this process adopts whatever the
program leaves behind (PR_SET_CHILD_SUBREAPER) and kills until there is nothing left to adopt.

Most of the time that a run costs is spent on imports, so there is no pathlib, dataclasses, typing or json here.
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
from .seccomp import install_filter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from .spec import RunSpec

_POLL_SECONDS = 0.02
"""Between two checks of memory and processor time."""
_NAMESPACE_USER = 1000
"""The id of an ordinary user inside its own user namespace."""
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def main(control: int, report: int) -> None:
    """Run one program. Arguments: the descriptors to read from and to write to."""
    for descriptor in (control, report):
        os.set_inheritable(descriptor, False)
    try:
        with os.fdopen(os.dup(control), "rb") as stream:
            sizes = struct.unpack("QQ", stream.read(16))
            packed_spec, program = (stream.read(size) for size in sizes)
        fields = marshal.loads(packed_spec)
        limits = SimpleNamespace(**fields.pop("limits"))
        spec: RunSpec = SimpleNamespace(**fields, limits=limits)  # type: ignore[assignment]
        supervise(spec, program, control, report)
    except Exception as error:  # the caller receives and raises it, whatever it is
        send(report, "error", _describe(error))


def _describe(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}"[:1000].split())


def send(report: int, name: str, value: object) -> None:
    # Shorter than PIPE_BUF, so that lines of several processes do not mix.
    os.write(report, f"{name} {value}\n".encode("utf-8", "replace"))


def supervise(spec: RunSpec, program: bytes, control: int, report: int) -> None:
    """Start the program, wait for its end, end everything it started, and report."""
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    existing_tasks = _count_user_tasks(spec)
    wake, wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake_writer)
    if spec.namespaces:
        if os.geteuid():
            syscalls.enter_user_namespace(_NAMESPACE_USER)
        syscalls.unshare(syscalls.CLONE_NEWPID)
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        try:  # if memory runs out, the kernel should end the program first; nothing relies on it
            syscalls.write("/proc/self/oom_score_adj", b"1000")
        except OSError:
            pass
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            if spec.namespaces:
                _run_as_process_1(spec, program, report, existing_tasks)
            _become_program(spec, report, existing_tasks)
        except BaseException as error:
            send(report, "error", _describe(error))
            os._exit(1)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    cpu = CpuTime()
    ended_by, status = _watch(spec, child, control, wake, cpu)
    _kill_all(spec, child if ended_by != "ended" else None)
    if status is not None and not spec.namespaces:
        send(report, "status", status)
    # The time of processes for which process 1 had not waited when it was killed is only in `cpu`.
    send(report, "cpu", max(cpu.seconds, _reaped_cpu_seconds()))
    send(report, "by", ended_by)


class CpuTime:
    """Processor time of all processes of the program when last measured."""

    seconds = 0.0


def _reaped_cpu_seconds() -> float:
    """Processor time of the processes that have ended and been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _watch(spec: RunSpec, child: int, control: int, wake: int, cpu: CpuTime) -> tuple[str, int | None]:
    """Wait until the program ends, the caller closes its pipe, or the processes together exceed a limit.

    Returns:
        "ended", "stopped", "out_of_cpu", "out_of_memory" or "killed"; and the child's status if it ended.
    """
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wake, select.POLLIN)
    while True:
        ready = poll.poll(_POLL_SECONDS * 1000)
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
        exceeded = _exceeded_limit(spec, child, cpu)
        if exceeded:
            return exceeded, None


def _exceeded_limit(spec: RunSpec, child: int, cpu: CpuTime) -> str:
    """The limit that the processes exceed together; empty if there is none. Updates `cpu`."""
    process_1 = {child} if spec.namespaces else set()
    memory = tasks = ticks = 0
    for pid in descendants():
        try:
            fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
            memory_lines = _read(f"/proc/{pid}/status").splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += sum(map(int, fields[11:15]))
        if pid not in process_1:
            tasks += int(fields[17])
            words = [line.split() for line in memory_lines if line.startswith(("RssAnon:", "RssShmem:"))]
            memory += sum(int(word[1]) << 10 for word in words)
    if memory > spec.limits.memory:
        return "out_of_memory"
    cpu.seconds = max(cpu.seconds, ticks / _CLOCK_TICKS + _reaped_cpu_seconds())
    if cpu.seconds > spec.limits.cpu_seconds:
        return "out_of_cpu"
    # RLIMIT_NPROC acts earlier, wherever the kernel can count the program apart from the user's other processes.
    return "killed" if tasks > spec.limits.processes + 1 else ""


def _read(path: str) -> str:
    with open(path, errors="replace") as stream:
        return stream.read()


def descendants() -> list[int]:
    """The ids of all descendants of this process. Those that start during the call may be missing."""
    found: list[int] = [os.getpid()]
    parents: dict[int, int] | None = None
    for pid in found:
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                found += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
        except (FileNotFoundError, ProcessLookupError):
            if pid == os.getpid():  # the kernel keeps no lists of children
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
            text = _read(f"/proc/{pid}/stat")
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(pid)] = int(text.rpartition(")")[2].split()[1])
    return parents


def _kill_all(spec: RunSpec, child: int | None) -> None:
    """Return when no descendant is left, running or dead. `child` is None if it has been waited for."""
    while True:
        if spec.user is not None and not spec.namespaces:
            _kill_all_of_user(spec.user)
        # Stopped first, so that none starts another while the rest are being killed.
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


def _kill_all_of_user(user: int) -> None:
    """Kill all processes of this run's own user in one call, so that none can start another in time."""
    killer = os.fork()
    if killer == 0:
        try:
            os.setresuid(user, user, user)
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    os.waitpid(killer, 0)


def _run_as_process_1(spec: RunSpec, program: bytes, report: int, existing_tasks: int) -> NoReturn:
    """Process 1 of the namespace: build the file system that the program sees, start it, and end with it."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setsid()
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS)
    owner = spec.user if spec.user is not None else os.getuid()
    syscalls.build_root(spec.readable, program, owner, spec.limits.directory_bytes, spec.limits.directory_files)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    child = os.fork()
    if child == 0:
        _become_program(spec, report, existing_tasks)
    while True:
        pid, status = os.wait()
        if pid == child:
            send(report, "status", status)
            os._exit(0)


def _become_program(spec: RunSpec, report: int, existing_tasks: int) -> NoReturn:
    """Give up all privileges, set all limits, then execute the program in this process."""
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
    _set_limit(resource.RLIMIT_CPU, seconds, seconds + 1)
    _set_limit(resource.RLIMIT_AS, spec.limits.memory)
    _set_limit(resource.RLIMIT_FSIZE, spec.limits.file_size)
    _set_limit(resource.RLIMIT_NPROC, spec.limits.processes + existing_tasks)
    _set_limit(resource.RLIMIT_CORE, 0)
    _set_limit(resource.RLIMIT_MEMLOCK, 0)
    _set_limit(resource.RLIMIT_MSGQUEUE, 0)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    if spec.landlock:
        syscalls.restrict_files([*spec.readable, spec.command[-1]], spec.directory)
    _set_limit(resource.RLIMIT_NOFILE, spec.limits.open_files)
    if spec.seccomp:
        install_filter(only_own_signals=spec.user is None and not spec.namespaces)
    send(report, "started", "")
    try:
        os.execve(spec.command[0], spec.command, spec.environment)
    except OSError as error:
        send(report, "error", f"{spec.command[0]}: {error.strerror}")
        os._exit(1)


def _count_user_tasks(spec: RunSpec) -> int:
    """Processes and threads that already count towards the program's limit on processes, because its user runs them.

    A user namespace is counted by itself (Linux 5.14).
    """
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


def _set_limit(kind: int, value: int, hard: int | None = None) -> None:
    current_hard = resource.getrlimit(kind)[1]
    wanted = value if hard is None else hard
    ceiling = wanted if current_hard == resource.RLIM_INFINITY else min(wanted, current_hard)
    resource.setrlimit(kind, (min(value, ceiling), ceiling))
