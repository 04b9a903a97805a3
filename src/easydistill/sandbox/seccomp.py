"""The seccomp filter: the system calls that a program in the sandbox cannot make.

Every supervisor loads this module anew, so it imports little.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from .syscalls import check, libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_REFUSED_CALLS = {
    # Name: (number on x86_64, number on aarch64).
    "socket": (41, 198),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    # Memory that counts towards no process's limit.
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    # Namespaces, mounts, and other access to the kernel that ordinary programs do not need.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "vmsplice": (278, 75),
    "personality": (135, 92),
    "syslog": (103, 116),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
}
_REFUSED_NEWER_CALLS = (*range(425, 434), 438, 440, 442, 443, 447, 448, 467)
"""io_uring, the newer calls for mounts, pidfd_getfd, process_madvise, quotactl_fd, memfd_secret, process_mrelease.
Their numbers are the same on all architectures."""
_NAMESPACE_FLAGS = 0x7E020000
"""The flags of clone that create namespaces."""
_CLONE, _CLONE3, _PIDFD_SEND_SIGNAL = (56, 220), 435, 424
_PRLIMIT = (302, 261)
"""prlimit64, which reads and sets limits of any process of the same user."""
_ON_PROCESSES = ((62, 129), (200, 130), (234, 131), (203, 122), (142, 118), (144, 119), (314, 274))
"""kill, tkill, tgkill; sched_setaffinity, sched_setparam, sched_setscheduler, sched_setattr. As with prlimit64, the
first argument is the process."""
_ON_GROUPS = ((129, 138), (297, 240), (141, 140), (251, 30))
"""rt_sigqueueinfo, rt_tgsigqueueinfo, setpriority, ioprio_set."""
_OWNERS = (((72, 25), (8, 10, 15)), ((16, 29), (0x8901, 0x8902)))
"""fcntl with F_SETOWN, F_SETSIG or F_SETOWN_EX, and ioctl with FIOSETOWN or SIOCSPGRP, as the second argument. With
these the kernel sends any signal on the program's behalf, to whatever process it sets as a descriptor's owner."""
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000


def install_filter(*, only_own_signals: bool) -> None:
    """Refuse sockets, reading or tracing other processes, namespaces, and memory that counts towards no limit.

    Args:
        only_own_signals: also refuse to signal, limit or slow down any process except the caller and its group. For a
            program that runs as the same user as the caller and in no namespace.

    Raises:
        OSError: the kernel has no seccomp, or the numbers of this architecture's system calls are not known here.
    """
    if os.uname().machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"there is no filter of system calls for {os.uname().machine}")
    architecture, column = _ARCHITECTURES[os.uname().machine]
    code = b"".join(_filter(architecture, column, os.getpid(), only_own_signals))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    argument = ctypes.create_string_buffer(program, len(program))
    arguments = (ctypes.c_ulong(2), ctypes.c_void_p(ctypes.addressof(argument)), ctypes.c_ulong(0), ctypes.c_ulong(0))
    check(libc.prctl(ctypes.c_int(22), *arguments), "prctl(PR_SET_SECCOMP)")


def _filter(architecture: int, column: int, own_pid: int, only_own_signals: bool) -> Iterator[bytes]:
    """Classic BPF over `struct seccomp_data`: the call's number at 0, the architecture at 4, the arguments from 16."""

    def step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("HBBI", code, then, otherwise, value & 0xFFFFFFFF)

    refuse = step(_RETURN, _REFUSE | errno.EPERM)
    yield step(_LOAD, 4)
    yield step(_EQUAL, architecture, 1)
    yield refuse
    yield step(_LOAD, 0)
    if column == 0:  # x32, a second set of numbers on x86_64
        yield step(_AT_LEAST, 0x40000000, 0, 1)
        yield refuse
    numbers = [pair[column] for pair in _REFUSED_CALLS.values()] + list(_REFUSED_NEWER_CALLS)
    if only_own_signals:
        numbers += [_PIDFD_SEND_SIGNAL] + [pair[column] for pair in _ON_GROUPS]
    for number in numbers:
        yield step(_EQUAL, number, 0, 1)
        yield refuse
    # A filter cannot read the flags of clone3. If the call fails with ENOSYS, the C library falls back to clone.
    yield step(_EQUAL, _CLONE3, 0, 1)
    yield step(_RETURN, _REFUSE | errno.ENOSYS)
    yield step(_EQUAL, _CLONE[column], 0, 4)
    yield step(_LOAD, 16)
    yield step(_ANY_BIT, _NAMESPACE_FLAGS, 0, 1)
    yield refuse
    yield step(_LOAD, 0)
    for pair in (_PRLIMIT, *(_ON_PROCESSES if only_own_signals else ())):
        yield step(_EQUAL, pair[column], 0, 6)
        yield step(_LOAD, 16)
        yield step(_EQUAL, own_pid, 3)
        yield step(_EQUAL, 0, 2)
        yield step(_EQUAL, -own_pid, 1)
        yield refuse
        yield step(_LOAD, 0)
    for pair, commands in _OWNERS if only_own_signals else ():
        yield step(_EQUAL, pair[column], 0, 2 * len(commands) + 2)
        yield step(_LOAD, 24)
        for command in commands:
            yield step(_EQUAL, command, 0, 1)
            yield refuse
        yield step(_LOAD, 0)
    yield step(_RETURN, _ALLOW)
