"""Whatever a program does, it is contained, the next one runs, and nothing of it is left.

Every case ends with the same questions: is the user's world as it was, is no process and no file left, does an honest
program still run? The cases marked `everywhere` also run in other ways that a machine may have: as a user who is not
root, and without namespaces.
"""

# Tables of cases, one a line.
# ruff: noqa: E501

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import doctest
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import easydistill
from easydistill import sandbox
from easydistill.sandbox import (
    Limits,
    RunResult,
    Sandbox,
    SandboxError,
    directory,
    execution,
    probe,
    protections,
    run_program,
    syscalls,
)
from easydistill.sandbox.spec import unused_user_id
from easydistill.sandbox.supervisor import _parents, descendants

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's; elsewhere it refuses")
SMALL = Limits(
    seconds=5.0,
    cpu_seconds=2.0,
    memory=256 << 20,
    file_size=4 << 20,
    directory_bytes=8 << 20,
    directory_files=200,
    processes=16,
    open_files=32,
    output_bytes=1 << 16,
)
SHORT = dataclasses.replace(SMALL, seconds=0.3)
BUSY = dataclasses.replace(SMALL, cpu_seconds=0.3, seconds=20.0)
PRELUDE = """\
import os, sys
def tried(attempt):
    try:
        attempt()
    except BaseException as error:
        print("refused", type(error).__name__, flush=True)
    else:
        print("DONE", flush=True)
def libc():
    import ctypes
    return ctypes.CDLL(None, use_errno=True)
def call(result):
    if result == -1:
        raise OSError(result)
"""
BY_THE_KERNEL = """\
import fcntl, signal, socket, struct, time
def sent(pid, ends, to):
    to(pid, ends[0])
    fcntl.fcntl(ends[0], fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    os.write(ends[1], b"x")
"""
STOPPED = ("timed_out", "out_of_cpu", "out_of_memory", "killed", "too_much_output")


@dataclass(frozen=True)
class Case:
    name: str
    source: str
    outcomes: tuple[str, ...] = ("ok",)
    limits: Limits = SMALL
    stdin: str = ""
    check: Callable[[RunResult], object] = field(default=lambda ran: True)
    everywhere: bool = False
    needs: str = ""
    """What of `protections()` contains it. Where that does not hold, it must say so, and the program is not run."""


def refused(ran: RunResult) -> bool:
    return "refused" in ran.stdout and "DONE" not in ran.stdout


def says(text: str) -> Callable[[RunResult], bool]:
    return lambda ran: text in ran.stdout


CASES = [
    # Processes and threads.
    Case("forks_until_refused", "import time\nn = 0\ntry:\n    while n < 1000:\n        if os.fork() == 0:\n            time.sleep(30)\n            os._exit(0)\n        n += 1\nexcept OSError:\n    print('forks', n <= 16)", check=says("forks True")),
    Case("fork_bomb", "while True:\n    try:\n        os.fork()\n    except OSError:\n        pass", STOPPED, dataclasses.replace(SHORT, processes=8)),
    Case("fork_bomb_in_new_sessions", "while True:\n    try:\n        if os.fork() == 0:\n            os.setsid()\n    except OSError:\n        pass", STOPPED, dataclasses.replace(SHORT, processes=8), everywhere=True),
    Case("zombies", "n = 0\ntry:\n    while n < 1000:\n        if os.fork() == 0:\n            os._exit(0)\n        n += 1\nexcept OSError:\n    print('zombies', n <= 16)", check=says("zombies True")),
    Case("thread_bomb", "import threading, time\nn = 0\ntry:\n    while n < 1000:\n        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()\n        n += 1\nexcept RuntimeError:\n    print('threads', n <= 16)", check=says("threads True")),
    Case("daemon_by_double_fork", "import time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)\n    os._exit(0)\nos.wait()\nprint('left one')", check=says("left one")),
    Case("daemons_that_close_everything", "import time\nfor _ in range(8):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n            os.closerange(0, 100)\n            time.sleep(60)\n        os._exit(0)", check=lambda ran: ran.wall_seconds < 4),
    Case("child_keeps_stdout_open", "import time\nif os.fork() == 0:\n    time.sleep(60)\nprint('main is done')", check=says("main is done")),
    Case("child_floods_after_the_end", "if os.fork() == 0:\n    while True:\n        print('x' * 1000)", ("ok", "too_much_output")),
    Case("thread_goes_on_after_the_end", "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()", ("timed_out",), SHORT),
    Case("exit_handler_hangs", "import atexit, time\natexit.register(time.sleep, 60)", ("timed_out",), SHORT),
    # Signals.
    Case("kill_the_parent", "import signal\ntried(lambda: os.kill(os.getppid(), signal.SIGKILL))\nprint('alive')", ("ok", "killed"), check=lambda ran: ran.exit_code == 0 or ran.signal == signal.SIGKILL, needs="no_signals_outside"),
    Case("stop_the_parent", "import signal, time\ntried(lambda: os.kill(os.getppid(), signal.SIGSTOP))\nprint('alive')", check=says("alive"), needs="no_signals_outside"),
    Case("stop_the_user", "import signal\ntried(lambda: os.kill(@PID@, signal.SIGSTOP))", check=refused, everywhere=True, needs="no_signals_outside"),
    Case("kernel_stops_the_user", BY_THE_KERNEL + "def to(pid, reader):\n    fcntl.fcntl(reader, fcntl.F_SETSIG, signal.SIGSTOP)\n    fcntl.fcntl(reader, fcntl.F_SETOWN, pid)\ntried(lambda: sent(@PID@, os.pipe(), to))\nprint('alive')", check=says("alive"), everywhere=True, needs="no_signals_outside"),
    Case("kernel_kills_the_user", BY_THE_KERNEL + "def to(pid, reader):\n    fcntl.ioctl(reader, 0x8901, struct.pack('i', pid))\ntried(lambda: sent(@PID@, [end.detach() for end in socket.socketpair()], to))\nprint('alive')", check=says("alive"), everywhere=True, needs="no_signals_outside"),
    Case("kernel_kills_the_supervisor", BY_THE_KERNEL + "def to(pid, reader):\n    fcntl.fcntl(reader, fcntl.F_SETSIG, signal.SIGKILL)\n    fcntl.fcntl(reader, 15, struct.pack('ii', 1, pid))\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)\n    os._exit(0)\nos.wait()\ntried(lambda: sent(os.getppid(), os.pipe(), to))\nprint('alive')", check=says("alive"), everywhere=True, needs="no_signals_outside"),
    Case("slows_the_user_down", "calls = {'x86_64': (142, 144, 314, 251), 'aarch64': (118, 119, 274, 30)}[os.uname().machine]\nimport ctypes, struct\nnothing, idle = ctypes.c_int(0), struct.pack('IIQiIQQQ', 48, 5, 0, 0, 0, 0, 0, 0)\nfor number, words in zip(calls, ((@PID@, ctypes.byref(nothing)), (@PID@, 5, ctypes.byref(nothing)), (@PID@, idle, 0), (1, @PID@, 3 << 13))):\n    tried(lambda: call(libc().syscall(number, *words)))", check=refused, everywhere=True, needs="system_call_filter"),
    Case("kill_the_group", "import signal\nos.killpg(0, signal.SIGKILL)", ("killed",), check=lambda ran: ran.signal == signal.SIGKILL),
    Case("kill_all", "import signal\ntry:\n    os.kill(-1, signal.SIGKILL)\nexcept OSError:\n    pass\nprint('still here')", ("ok", "killed"), everywhere=True, needs="no_signals_outside"),
    Case("kill_all_numbers", "import signal\ndef able(pid):\n    try:\n        os.kill(pid, signal.SIGKILL)\n    except OSError:\n        return False\n    return True\nprint('killed', [pid for pid in range(2, 30000) if pid != os.getpid() and able(pid)])", check=says("killed []"), needs="no_signals_outside"),
    Case("stop_itself", "import signal\nos.kill(os.getpid(), signal.SIGSTOP)", ("timed_out",), SHORT),
    Case("ignores_being_asked", "import signal, time\nfor n in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:\n    signal.signal(n, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(60)", ("timed_out",), SHORT, check=says("deaf")),
    Case("ignores_the_cpu_limit", "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", ("out_of_cpu",), BUSY),
    # Time.
    Case("endless_loop", "while True: pass", ("out_of_cpu",), BUSY, check=lambda ran: ran.cpu_seconds > 0.2),
    Case("endless_loop_on_the_wall_clock", "while True: pass", ("timed_out",), SHORT, check=lambda ran: 0.3 <= ran.wall_seconds < 10),
    Case("endless_loops_in_children", "for _ in range(3): os.fork()\nwhile True: pass", STOPPED, BUSY),
    Case("long_sleep", "import time\nprint('before', flush=True)\ntime.sleep(1000)", ("timed_out",), SHORT, check=lambda ran: ran.stdout == "before\n" and ran.exit_code is None),
    Case("catastrophic_regex", "import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')", ("out_of_cpu",), BUSY),
    Case("huge_power", "print(len(str(9 ** 9 ** 9)))", STOPPED, BUSY),
    # Memory.
    Case("list_grows", "x = []\nwhile True: x.append([0] * 1000)", ("out_of_memory",), dataclasses.replace(SMALL, memory=96 << 20)),
    Case("many_bytes", "x = b'x' * (1 << 33)", ("out_of_memory",)),
    Case("mmap", "import mmap\ntried(lambda: mmap.mmap(-1, 1 << 33))", check=refused),
    Case("huge_stacks", "import threading\nthreading.stack_size(1 << 30)\ntried(lambda: threading.Thread(target=print).start())", check=refused),
    Case("endless_recursion", "sys.setrecursionlimit(10 ** 9)\ndef f(x): return f([x]) + 1\nf(0)", (*STOPPED, "failed"), BUSY),
    Case("recursion_in_c", "x = []\nfor _ in range(40000): x = [x]\nsys.setrecursionlimit(10 ** 9)\nrepr(x)", ("ok", *STOPPED, "failed"), BUSY),
    Case("memory_in_children", "import time\nfor _ in range(6):\n    if os.fork() == 0:\n        break\nx = bytearray(b'x' * (100 << 20))\ntime.sleep(60)", ("out_of_memory",), dataclasses.replace(SMALL, seconds=20.0), everywhere=True),
    Case("memory_without_an_owner", "tried(lambda: os.memfd_create('x'))\ntried(lambda: call(libc().shmget(0, 1 << 30, 0o1600)))", check=refused, needs="system_call_filter"),
    Case("shared_memory_files", "def fill():\n    for n in range(1000):\n        with open(f'/dev/shm/@TOKEN@-{n}', 'wb') as f:\n            f.write(bytes(1 << 20))\ntried(fill)", check=refused, needs="no_writing_outside"),
    Case("reads_an_endless_device", "open('/dev/zero', 'rb').read()", ("out_of_memory",)),
    # Disk.
    Case("one_big_file", "def fill():\n    with open('big', 'wb') as f:\n        for _ in range(1000): f.write(bytes(1 << 20))\ntried(fill)", check=refused),
    Case("many_big_files", "def fill():\n    for n in range(190):\n        with open(str(n), 'wb') as f: f.write(bytes(3 << 20))\n    import time; time.sleep(60)\ntried(fill)", ("ok", "too_much_output"), check=lambda ran: ran.outcome == "too_much_output" or refused(ran), everywhere=True),
    Case("sparse_file", "tried(lambda: open('sparse', 'wb').truncate(1 << 40))", check=refused),
    Case("many_files", "def fill():\n    for n in range(20000): open(str(n), 'wb').close()\n    import time; time.sleep(60)\ntried(fill)", ("ok", "too_much_output"), check=lambda ran: ran.outcome == "too_much_output" or refused(ran), everywhere=True),
    Case("many_directories", "def fill():\n    for n in range(20000): os.mkdir(str(n))\n    import time; time.sleep(60)\ntried(fill)", ("ok", "too_much_output"), check=lambda ran: ran.outcome == "too_much_output" or refused(ran)),
    Case("deep_directory", "def fill():\n    for n in range(20000):\n        os.mkdir('d' * 100)\n        os.chdir('d' * 100)\n    import time; time.sleep(60)\ntried(fill)", ("ok", "too_much_output"), check=lambda ran: ran.outcome == "too_much_output" or refused(ran), everywhere=True),
    Case("deleted_but_open", "def fill():\n    kept = []\n    while True:\n        kept.append(open('x', 'wb'))\n        os.unlink('x')\n        kept[-1].write(bytes(3 << 20))\ntried(fill)", ("ok", "too_much_output"), check=lambda ran: ran.outcome == "too_much_output" or refused(ran)),
    Case("many_open_files", "tried(lambda: [os.open('/dev/null', 0) for _ in range(1000)])", check=refused),
    Case("locked_directories", "os.makedirs('a/b/c')\nopen('a/b/f', 'w').close()\nfor name in ('a/b/f', 'a/b/c', 'a/b', 'a', '.'):\n    os.chmod(name, 0)", everywhere=True),
    Case("read_only_directories", "os.makedirs('a/b/c')\nfor name in ('a/b/c', 'a/b', 'a', '.'):\n    os.chmod(name, 0o500)"),
    Case("removes_its_directory", "import shutil\nshutil.rmtree(os.getcwd(), ignore_errors=True)\ntry:\n    os.rename(os.getcwd(), os.getcwd() + '-moved')\nexcept OSError:\n    pass", everywhere=True),
    Case("odd_names", "open(b'\\xff\\n', 'w').close()\nos.mkfifo('pipe')\nos.symlink('/nowhere', 'link')\nos.symlink('loop', 'loop')"),
    # Output.
    Case("endless_output", "while True: print('x' * 1000)", ("too_much_output",), check=lambda ran: len(ran.stdout) == 1 << 16),
    Case("endless_errors", "while True: print('x' * 1000, file=sys.stderr)", ("too_much_output",), check=lambda ran: len(ran.stderr) == 1 << 16),
    Case("one_endless_line", "sys.stdout.write('x' * (100 << 20))", ("too_much_output",)),
    Case("not_utf8", "sys.stdout.buffer.write(b'\\xff\\xfe\\x00a')", check=lambda ran: ran.stdout == "\ufffd\ufffd\x00a"),
    Case("closes_its_output", "os.close(1)\nos.close(2)", ("ok", "failed"), check=lambda ran: ran.stdout == ""),
    Case("input_never_read", "print('no thanks')", stdin="x" * (5 << 20), check=says("no thanks")),
    Case("input_closed", "os.close(0)\nprint('closed', flush=True)\nimport time; time.sleep(0.2)", ("ok", "failed"), stdin="x" * (5 << 20), check=says("closed")),
    Case("speaks_to_the_supervisor", "for n in range(3, 100):\n    try:\n        os.write(n, b'by ended\\nstatus 0\\n')\n    except OSError:\n        pass\nsys.exit(7)", ("failed",), check=lambda ran: ran.exit_code == 7),
    # How it ends.
    Case("leaves_at_once", "os._exit(0)", check=lambda ran: ran.stdout == ""),
    Case("code_that_wraps_to_success", "os._exit(256)", check=lambda ran: ran.stdout == ""),
    Case("fails", "sys.exit(3)", ("failed",), check=lambda ran: ran.exit_code == 3),
    Case("pretends_to_lack_memory", "print('MemoryError', file=sys.stderr)\nsys.exit(1)", ("out_of_memory",)),
    Case("syntax_error", "def", ("failed",), check=lambda ran: "SyntaxError" in ran.stderr),
    Case("null_bytes", "x = 1\x00\nprint('DONE')", ("failed",), check=lambda ran: ran.stdout == ""),
    Case("half_a_surrogate", "print('\ud800')", ("failed",), check=lambda ran: ran.stdout == ""),
    Case("segmentation_fault", "import ctypes\nctypes.string_at(0)", ("killed",), check=lambda ran: ran.signal == signal.SIGSEGV and ran.exit_code is None),
    Case("abort", "os.abort()", ("killed",), check=lambda ran: ran.signal == signal.SIGABRT),
    # Secrets.
    Case("own_environment", "print(dict(os.environ))", check=lambda ran: "sk-secret" not in ran.stdout and "HF_" not in ran.stdout),
    Case("environments_in_proc", "import glob\nfor path in [f'/proc/{os.getppid()}/environ', '/proc/@PID@/environ', '/proc/1/environ', *glob.glob('/proc/[0-9]*/environ')]:\n    try:\n        print(open(path, 'rb').read())\n    except OSError:\n        print('refused')", check=lambda ran: "sk-secret" not in ran.stdout and "refused" in ran.stdout, everywhere=True, needs="no_private_files"),
    Case("reads_private_files", "tried(lambda: open('@PRIVATE@').read())\ntried(lambda: open('/etc/shadow').read())", check=refused, everywhere=True, needs="no_private_files"),
    Case("reads_public_files", "tried(lambda: open('@PUBLIC@').read())", check=refused, needs="no_files_outside"),
    Case("inherited_descriptors", "def able(n):\n    try:\n        os.fstat(n)\n    except OSError:\n        return False\n    return True\nprint('open', [n for n in range(3, 4096) if able(n)])", check=says("open []")),
    Case("memory_of_the_parent", "import ctypes\nfor pid in (os.getppid(), @PID@):\n    tried(lambda: open(f'/proc/{pid}/mem', 'rb').read(1))\n    tried(lambda: call(libc().ptrace(16, pid, None, None)))\n    b = ctypes.create_string_buffer(32)\n    tried(lambda: call(libc().process_vm_readv(pid, b, 1, b, 1, 0)))", check=refused, everywhere=True, needs="system_call_filter"),
    # What is outside.
    Case("writes_outside", "for place in ('@WORLD@/@TOKEN@', '/var/tmp/@TOKEN@', '/root/@TOKEN@', '/home/@TOKEN@', '/@TOKEN@', '/etc/@TOKEN@', '/usr/@TOKEN@', '@PACKAGE@/@TOKEN@', os.path.dirname(os.__file__) + '/@TOKEN@', os.path.expanduser('~root/@TOKEN@')):\n    tried(lambda: open(place, 'w').close())", check=refused, everywhere=True, needs="no_writing_outside"),
    Case("writes_where_all_may", "for place in ('/tmp/@TOKEN@', '/dev/shm/@TOKEN@'):\n    try:\n        open(place, 'w').write('x')\n    except OSError:\n        pass", needs="no_writing_outside"),
    Case("deletes_files_of_the_user", "import shutil\ntried(lambda: os.rename('@WORLD@', '@WORLD@-gone'))\ntried(lambda: os.unlink('@PUBLIC@'))\nshutil.rmtree('@WORLD@', ignore_errors=True)", check=refused, everywhere=True, needs="no_writing_outside"),
    Case("changes_files_of_the_user", "for place in ('@PUBLIC@', '@PRIVATE@', '@PACKAGE@/errors.py', os.__file__, sys.executable):\n    tried(lambda: open(place, 'r+').close())", check=refused, needs="no_writing_outside"),
    Case("links_out", "os.symlink('@WORLD@', 'out')\ntried(lambda: open('out/@TOKEN@', 'w'))\ntried(lambda: open('out/public', 'a'))\ntried(lambda: os.link('@PUBLIC@', 'hard') or open('hard', 'a'))", check=refused, everywhere=True, needs="no_writing_outside"),
    Case("changes_its_own_program", "tried(lambda: open(__file__, 'w'))", check=refused),
    Case("devices", "tried(lambda: os.mknod('disk', 0o60600, os.makedev(8, 0)))\ntried(lambda: open('/dev/vda', 'rb'))\ntried(lambda: open('/dev/mem', 'rb'))\ntried(lambda: open('/dev/tty', 'w'))", check=refused),
    # Network.
    Case("tcp", "import socket\ntried(lambda: socket.create_connection(('127.0.0.1', @PORT@), 2))", check=refused, needs="no_network", everywhere=True),
    Case("udp", "import socket\ntried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', @PORT@)))", check=refused, needs="no_network"),
    Case("listening", "import socket\ntried(lambda: socket.create_server(('127.0.0.1', 0)))", check=refused, needs="system_call_filter"),
    Case("raw_socket", "import socket\ntried(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))\ntried(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))", check=refused, needs="system_call_filter"),
    Case("unix_socket", "import socket\ntried(lambda: socket.socket(socket.AF_UNIX).connect('@WORLD@/socket'))", check=refused),
    Case("abstract_unix_socket", "import socket\ntried(lambda: socket.socket(socket.AF_UNIX).connect('\\0@TOKEN@'))", check=refused, needs="no_network"),
    # Privileges.
    Case("raises_its_limits", "import resource\nfor name in ('CPU', 'AS', 'FSIZE', 'NPROC', 'NOFILE', 'CORE'):\n    kind = getattr(resource, 'RLIMIT_' + name)\n    most = resource.getrlimit(kind)[1]\n    tried(lambda: resource.setrlimit(kind, (most + 1, most + 1)))", check=refused),
    Case("limits_of_others", "import resource\ntried(lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1)))\ntried(lambda: resource.prlimit(@PID@, resource.RLIMIT_CPU, (1, 1)))", check=refused, everywhere=True, needs="no_signals_outside"),
    Case("becomes_root", "tried(lambda: os.setuid(0))\ntried(lambda: os.setgid(0))\ntried(lambda: os.setgroups([0]))\ntried(lambda: os.chown('.', 0, 0))\ntried(lambda: os.chroot('.'))", check=refused),
    Case("new_namespaces", "for flag in (0x10000000, 0x20000, 0x40000000):\n    tried(lambda: call(libc().unshare(flag)))\ntried(lambda: call(libc().mount(b'none', b'/tmp', b'tmpfs', 0, None)))\ntried(lambda: call(libc().umount2(b'/tmp', 2)))", check=refused, needs="system_call_filter"),
    Case("faster_than_others", "tried(lambda: os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - 5))\ntried(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))", check=refused),
    Case("setuid_programs", "import subprocess\ntry:\n    print(subprocess.run(['su', '-c', 'id'], capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout)\nexcept OSError:\n    pass", check=lambda ran: "uid=0" not in ran.stdout),
]  # fmt: skip


class World:
    """What the user has and a program must not touch."""

    def __init__(self, place: Path, *, package: Path, pid: int, owner: int) -> None:
        place.mkdir(mode=0o755)
        self.place, self.package, self.pid = place, package, pid
        self.token = f"easydistill-escaped-{os.getpid()}-{time.monotonic_ns()}"
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(self.tcp.getsockname())
        self.path, self.abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        self.path.bind(str(place / "socket"))
        self.abstract.bind(f"\0{self.token}")
        self.path.listen()
        self.abstract.listen()
        self.servers = [self.tcp, self.udp, self.path, self.abstract]
        for server in self.servers:
            server.setblocking(False)
        for name, mode in (("private", 0o600), ("public", 0o644)):
            (place / name).write_text(f"{name}, as it was")
            (place / name).chmod(mode)
        for path in (place, *place.iterdir()):
            os.chown(path, owner, owner if owner != os.geteuid() else -1)
        self.before = self.state()
        self.children = set(descendants())

    def state(self) -> list[tuple[str, int, int]]:
        paths = [*sorted(self.place.iterdir()), self.package, self.package / "errors.py", Path(os.__file__)]
        states = [path.stat() for path in paths]
        # Caches of bytecode come and go in the package itself.
        return [
            (str(path), found.st_mode, 0 if path == self.package else found.st_mtime_ns)
            for path, found in zip(paths, states, strict=True)
        ]

    def told(self, case: Case) -> str:
        words = {
            "@PID@": self.pid,
            "@PORT@": self.tcp.getsockname()[1],
            "@WORLD@": self.place,
            "@PRIVATE@": self.place / "private",
            "@PUBLIC@": self.place / "public",
            "@PACKAGE@": self.package,
            "@TOKEN@": self.token,
        }
        source = PRELUDE + case.source
        for word, value in words.items():
            source = source.replace(word, str(value))
        return source

    def is_as_it_was(self) -> None:
        assert self.state() == self.before
        for server in self.servers:
            with pytest.raises(BlockingIOError):
                server.recv(1) if server is self.udp else server.accept()
        for place in ("/tmp", "/dev/shm", "/var/tmp", "/"):
            left = list(Path(place).glob(f"{self.token}*"))
            for path in left:
                path.unlink()
            assert not left
        assert set(descendants()) == self.children, "a process is left"
        assert not list(Path(tempfile.gettempdir()).iterdir()), "a directory is left"

    def close(self) -> None:
        self.is_as_it_was()
        for server in self.servers:
            server.close()


Run = Callable[[str, str, Limits], RunResult]


@dataclass(frozen=True)
class Way:
    """One way in which a machine may shut programs in."""

    run: Run
    protections: dict[str, bool | str]
    world: World
    apart: Sequence[dict[str, bool | str]] = ()
    """What the filter of system calls holds alone, and Landlock alone, as far as the machine has them."""

    def contains(self, case: Case) -> None:
        if case.needs and self.protections[case.needs] is not True:
            assert self.protections[case.needs] is False
            return
        began = time.monotonic()
        ran = self.run(self.world.told(case), case.stdin, case.limits)
        assert time.monotonic() - began < 60
        assert ran.outcome in case.outcomes, ran
        assert case.check(ran), ran
        assert len(ran.stdout) <= case.limits.output_bytes and len(ran.stderr) <= case.limits.output_bytes
        self.world.is_as_it_was()

    def still_works(self) -> None:
        honest = self.run("print(sum(map(int, input().split())))", "1 2 3", SMALL)
        assert (honest.outcome, honest.stdout) == ("ok", "6\n"), honest


@pytest.fixture(scope="module")
def public_place() -> Iterator[Path]:
    """A directory that every user may look into, unlike pytest's. Temporary directories go there meanwhile.

    Orphans come to this process meanwhile, so that it can tell whether there are any.
    """
    place = Path(tempfile.mkdtemp(prefix="easydistill-test-"))
    place.chmod(0o755)
    (place / "temporary").mkdir()
    (place / "temporary").chmod(0o1777)
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(place / "temporary"))
        patch.setenv("OPENAI_API_KEY", "sk-secret")
        yield place
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 0)
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def here(public_place: Path) -> Iterator[Way]:
    # Without these, some programs below would do what they try.
    assert protections()["no_signals_outside"] is True
    assert protections()["no_writing_outside"] is True or protections()["own_user"] is True
    package = Path(easydistill.__file__).parent
    world = World(public_place / "here", package=package, pid=os.getpid(), owner=os.geteuid())
    yield Way(lambda source, stdin, limits: run_program(source, stdin=stdin, limits=limits), protections(), world)
    world.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_program_is_contained(case: Case, here: Way) -> None:
    here.contains(case)
    here.still_works()


@pytest.mark.parametrize(
    ("source", "stdin", "stdout"),
    [
        ("print('né', input())", "né €", "né né €\n"),
        (
            "import math, collections, itertools, json, re, heapq, bisect, functools, decimal, random, string, typing, dataclasses\nprint(math.pi)",
            "",
            "3.141592653589793\n",
        ),
        ("import sys\nprint(sys.stdin.read() == '', __name__)", "", "True __main__\n"),
        ("import sys\nprint(sys.stdin.read().count('x'))", "x" * 300_000, "300000\n"),
        ("open('a', 'w').write('kept')\nprint(open('a').read())", "", "kept\n"),
        ("import tempfile\nwith tempfile.NamedTemporaryFile() as f: print(f.write(b'ab'))", "", "2\n"),
        (
            "import os\npid = os.fork()\nif pid == 0:\n    os._exit(3)\nprint(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))",
            "",
            "3\n",
        ),
        (
            "import threading\nx = []\nt = [threading.Thread(target=x.append, args=(n,)) for n in range(8)]\n[a.start() for a in t]\n[a.join() for a in t]\nprint(len(x))",
            "",
            "8\n",
        ),
        ("import asyncio\nasync def f(): return 5\nprint(asyncio.run(f()))", "", "5\n"),
        (
            "import subprocess\nprint(subprocess.run(['echo', 'a'], capture_output=True, text=True).stdout.strip())",
            "",
            "a\n",
        ),
    ],
)
def test_an_honest_program_notices_nothing(source: str, stdin: str, stdout: str) -> None:
    ran = run_program(source, stdin=stdin)
    assert (ran.outcome, ran.stdout, ran.stderr, ran.exit_code, ran.signal, ran.reason) == (
        "ok",
        stdout,
        "",
        0,
        None,
        "",
    )
    assert 0 < ran.wall_seconds < 10
    assert 0 < ran.cpu_seconds < 10


def test_the_order_of_sets_is_the_same_each_time() -> None:
    first, second = (run_program("print(set('abcdefgh'))").stdout for _ in range(2))
    assert first == second


def test_packages_of_this_python_are_not_there() -> None:
    assert "ModuleNotFoundError" in run_program("import easydistill").stderr
    assert "ModuleNotFoundError" in run_program("import pytest").stderr


def test_a_reason_names_the_limit() -> None:
    assert (
        run_program("while True: print('x' * 100)", limits=SMALL).reason == "more than 65536 bytes of standard output"
    )
    assert run_program("import time; time.sleep(9)", limits=SHORT).reason == "more than 0.3 seconds"


def test_limits_must_be_something() -> None:
    with pytest.raises(ValueError, match="limit memory must be positive, not 0"):
        Limits(memory=0)
    with pytest.raises(ValueError, match="one worker"):
        Sandbox(workers=0)


def test_many_run_in_order_and_few_at_a_time(here: Way) -> None:
    slow = "import time\ntime.sleep(0.2)\nprint(input())"
    programs = [(slow if n % 2 else "print(input())", str(n)) for n in range(8)]
    most, stop = 0, threading.Event()

    def count() -> None:
        nonlocal most
        while not stop.wait(0.01):
            tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
            children: list[str] = []
            for task in tasks:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
                    children += (task / "children").read_text().split()
            most = max(most, len(set(map(int, children)) - here.world.children))

    counting = threading.Thread(target=count)
    counting.start()
    try:
        ran = Sandbox(workers=2, limits=SMALL).run_many(programs)
    finally:
        stop.set()
        counting.join()
    assert [one.stdout for one in ran] == [f"{n}\n" for n in range(8)]
    assert most == 2
    here.world.is_as_it_was()


def test_threads_share_a_sandbox_and_no_descriptor_leaks(here: Way) -> None:
    opened = len(list(Path("/proc/self/fd").iterdir()))
    shared = Sandbox(workers=2, limits=SHORT)
    hostile = [
        "import os\nos.fork()\nwhile True: pass",
        "print('x' * 10 ** 7)",
        "import os\nos.kill(-1, 9)",
        "print(1)",
    ]
    with ThreadPoolExecutor(4) as pool:
        outcomes = [ran.outcome for ran in pool.map(shared.run, hostile)]
    assert outcomes[0] in STOPPED and outcomes[1] == "too_much_output" and outcomes[3] == "ok"
    assert len(list(Path("/proc/self/fd").iterdir())) == opened
    here.world.is_as_it_was()


def test_nothing_outlives_a_caller_who_is_killed(here: Way) -> None:
    """The supervisor sees its pipe close, and ends what it started. Orphans would come to this process."""
    sleeping = (
        "import os, time\nfor _ in range(3): os.fork()\nos.setsid() if os.getpid() % 2 else None\ntime.sleep(600)"
    )
    code = f"from easydistill.sandbox import run_program\nprint(flush=True)\nrun_program({sleeping!r})"
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert caller.stdout is not None
    with caller.stdout as out:
        out.readline()
    deadline = time.monotonic() + 30
    while len(descendants()) < len(here.world.children) + 10 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(descendants()) >= len(here.world.children) + 10, "the program never came up"
    caller.kill()
    caller.wait()
    while set(descendants()) != here.world.children and time.monotonic() < deadline:
        time.sleep(0.02)
        with contextlib.suppress(ChildProcessError):
            for orphan in set(descendants()) - here.world.children:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(orphan, os.WNOHANG)
    here.world.is_as_it_was()


def test_an_interrupt_ends_the_program(here: Way) -> None:
    def interrupt() -> None:
        time.sleep(0.5)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    # A shell's background job ignores interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_program("import time\ntime.sleep(60)", limits=dataclasses.replace(SMALL, seconds=60))
        interrupting.join()
    finally:
        signal.signal(signal.SIGINT, before)
    here.world.is_as_it_was()


def test_what_cannot_be_set_up_raises_and_is_not_what_a_program_did(public_place: Path) -> None:
    isolation, _ = probe.measured()
    broken = dataclasses.replace(isolation, executable="/nowhere/python")
    with pytest.raises(SandboxError, match=r"/nowhere/python.*No such file"):
        execution.execute(broken, "print(1)", "", SMALL)
    with pytest.raises(SandboxError, match="install Python outside a private home directory"):
        probe.measure([broken])


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match=r"this is darwin\n    → run it on Linux"):
        run_program("print(1)")


def test_a_system_that_refuses_namespaces_is_told_apart(here: Way) -> None:
    """The reason that the kernel gave is in what `protections()` says."""
    isolation, _ = probe.measured()
    refusing = dataclasses.replace(isolation, namespaces=True, executable="/nowhere/python")
    found, held = probe.measure([refusing, isolation])
    assert found.refusal.startswith("the sandbox did not start")
    assert held["namespaces"] is True or "did not start" in str(held["namespaces"])


def test_the_example_in_the_documentation_of_the_package_runs() -> None:
    assert doctest.testmod(sandbox) == (0, 2)


def test_protections_are_measured_once() -> None:
    assert protections() == protections()
    assert protections() is not protections()
    assert all(isinstance(value, bool | str) for value in protections().values())


def test_descendants_are_found_where_the_kernel_keeps_no_lists_of_children() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert _parents()[child.pid] == os.getpid()
        assert child.pid in descendants()
    finally:
        child.kill()
        child.wait()


def test_a_directory_is_emptied_whatever_is_in_it(public_place: Path) -> None:
    place = public_place / "deep"
    place.mkdir()
    deep = os.open(place, os.O_RDONLY)
    (place / "linked").symlink_to("/etc")
    for _ in range(100):
        os.mkdir("d" * 100, dir_fd=deep)
        deeper = os.open("d" * 100, os.O_RDONLY, dir_fd=deep)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=deeper))
        os.close(deep)
        deep = deeper
    os.close(deep)
    assert "deep" in directory.exceeded_limit(place, 1 << 40, 10**6)
    assert "files" in directory.exceeded_limit(place, 1 << 40, 10)
    top = os.open(place, os.O_RDONLY)
    directory.remove_contents(top)
    os.close(top)
    assert not list(place.iterdir())
    assert stat.S_ISDIR(Path("/etc").stat().st_mode)


# Last: its helpers are processes that the tests above would take for left-overs.
HELPER = """
import dataclasses, json, sys
sys.path.insert(0, sys.argv[1])
from sandbox import Limits, SandboxError
from sandbox.execution import execute
from sandbox.probe import measure, measured
assert "easydistill" not in sys.modules
isolation, protections = measured()
apart = []
if sys.argv[2] == "without":
    candidates = [dataclasses.replace(isolation, namespaces=False, seccomp=seccomp, landlock=landlock)
                  for seccomp in (True, False) for landlock in (True, False)]
    isolation, protections = measure(candidates)
    for one in candidates[1:3]:
        try:
            apart.append(measure([one])[1])
        except SandboxError:
            pass
print(json.dumps([protections, apart]), flush=True)
for line in sys.stdin:
    source, stdin, limits = json.loads(line)
    result = execute(isolation, source, stdin, Limits(**limits))
    print(json.dumps(dataclasses.asdict(result)), flush=True)
"""


def python_for(user: int | None) -> str:
    """A Python that a user may run; None is this one."""
    own = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
    for candidate in (own, "/usr/local/bin/python3", "/usr/bin/python3"):
        as_user = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        with contextlib.suppress(OSError):
            command = [candidate, "-S", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
            if subprocess.run(command, **as_user, cwd="/", stderr=subprocess.DEVNULL).returncode == 0:
                return candidate
    return ""


# As root, programs have users of their own; as another user they do not.
WAYS = ["root_without", "user_with", "user_without"] if os.geteuid() == 0 else ["user_without"]


@pytest.fixture(scope="module", params=WAYS)
def elsewhere(public_place: Path, request: pytest.FixtureRequest) -> Iterator[Way]:
    """A process with a copy of the package alone, as another user if this is root, with or without namespaces."""
    who, _, how = str(request.param).partition("_")
    user = unused_user_id() if who == "user" else None
    python = python_for(user if who == "user" else unused_user_id())
    if not python:
        # Then neither can programs run here without namespaces.
        assert protections()["namespaces"] is True
        pytest.skip("there is no Python of at least 3.11 that another user may run")
    package = public_place / str(request.param) / "sandbox"
    shutil.copytree(Path(sandbox.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (package, *package.rglob("*")) if user is not None else ():
        os.chown(path, user, user)
    helper = subprocess.Popen(
        [python, "-B", "-S", "-c", HELPER, str(package.parent), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        env={"TMPDIR": tempfile.gettempdir(), "OPENAI_API_KEY": "sk-secret"},
        **({} if user is None else {"user": user, "group": user, "extra_groups": []}),
    )
    assert helper.stdin is not None and helper.stdout is not None
    into, out = helper.stdin, helper.stdout

    def run(source: str, stdin: str, limits: Limits) -> RunResult:
        into.write(json.dumps([source, stdin, dataclasses.asdict(limits)]) + "\n")
        into.flush()
        return RunResult(**json.loads(out.readline()))

    held, apart = json.loads(out.readline())
    owner = user if user is not None else os.geteuid()
    world = World(public_place / f"{request.param}_world", package=package, pid=helper.pid, owner=owner)
    way = Way(run, held, world, apart)
    yield way
    way.still_works()
    world.close()
    into.close()
    assert helper.wait(60) == 0
    out.close()


def scoped(landlock: bool | str) -> bool:
    """Whether Landlock is there and keeps signals in."""
    asked = (ctypes.c_long(444), None, ctypes.c_size_t(0), ctypes.c_uint(1))
    return landlock is True and syscalls.libc.syscall(*asked) >= 6


@pytest.mark.parametrize("case", [case for case in CASES if case.everywhere], ids=lambda case: case.name)
def test_it_is_contained_elsewhere(case: Case, elsewhere: Way) -> None:
    elsewhere.contains(case)


def test_the_other_ways_say_what_they_do_not_hold(elsewhere: Way) -> None:
    held = elsewhere.protections
    assert held.keys() == protections().keys()
    assert held["own_user"] is (elsewhere.world.place.name == "root_without_world")
    if elsewhere.world.place.name.endswith("_without_world"):
        assert held["namespaces"] is not True
        assert held["directory"] == "on disk, watched"
    filtered, own = held["system_call_filter"] is True, held["own_user"] is True
    assert held["no_signals_outside"] is (held["namespaces"] is True or own or filtered or scoped(held["landlock"]))
    for alone in elsewhere.apart:
        kept = own or alone["system_call_filter"] is True or scoped(alone["landlock"])
        assert alone["no_signals_outside"] is kept, alone
    # Where neither is there, some of the cases above did not run.
    for name in ("no_files_outside", "no_writing_outside"):
        assert held[name] is (held["namespaces"] is True or held["landlock"] is True)
    assert held["no_network"] is (held["namespaces"] is True or held["system_call_filter"] is True)
