"""Linux system calls that Python lacks, through ctypes: namespaces, mounts, Landlock.

Every function acts on the calling process and raises OSError, naming the call, if the kernel refuses.
Every supervisor loads this module anew, and most of its start is spent on imports, so there is no pathlib or typing.
"""
# ruff: noqa: PTH102, PTH103, PTH106, PTH112, PTH114, PTH115, PTH120, PTH123, PTH211

from __future__ import annotations

import ctypes
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x1000, 0x4000, 0x40000
_ATTR_RDONLY, _ATTR_NOSUID = 1, 2
_SCOPE_SIGNAL = 2
_DEVICES = ("null", "zero", "full", "random", "urandom")


def check(result: int, call: str) -> int:
    """The result of a C call, or its error as OSError."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def _syscall(number: int, call: str, *arguments: object) -> int:
    return check(libc.syscall(ctypes.c_long(number), *arguments), call)


def prctl(option: int, value: int) -> None:
    words = [ctypes.c_ulong(word) for word in (value, 0, 0, 0)]
    check(libc.prctl(ctypes.c_int(option), *words), f"prctl({option})")


def unshare(flags: int) -> None:
    check(libc.unshare(ctypes.c_int(flags)), f"unshare({flags:#x})")


def enter_user_namespace(user_id: int) -> None:
    """Enter a new user namespace, in which this process's user has the id `user_id` and no other user exists."""
    user, group = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    write("/proc/self/setgroups", b"deny")
    write("/proc/self/uid_map", f"{user_id} {user} 1".encode())
    write("/proc/self/gid_map", f"{user_id} {group} 1".encode())


def write(path: str, content: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(content)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    words = [text.encode() if text is not None else None for text in (source, target, kind)]
    check(libc.mount(*words, ctypes.c_ulong(flags), data.encode()), f"mount({target})")


def _make_read_only(path: str, *, recursive: bool) -> None:
    """Make a mount read-only and without setuid programs; `recursive` includes all mounts below it. Linux 5.12."""
    attributes = struct.pack("QQQQ", _ATTR_RDONLY | _ATTR_NOSUID, 0, 0, 0)
    flags = 0x8000 if recursive else 0
    place, size = ctypes.c_char_p(path.encode()), ctypes.c_size_t(len(attributes))
    _syscall(442, f"mount_setattr({path})", ctypes.c_int(-100), place, ctypes.c_uint(flags), attributes, size)


def build_root(readable: Sequence[str], program: bytes, owner: int, size: int, files: int) -> None:
    """In a new mount namespace, replace the whole file system by a minimal one.

    It has `readable` and a few devices, read-only, `/program.py`, and an empty `/tmp` in memory, which belongs to
    `owner` and holds at most `size` bytes in `files` files. If the kernel allows it there is a `/proc`, which shows
    only the processes of the sandbox.
    """
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    os.umask(0o022)
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID, f"mode=755,size={len(program) + (1 << 20)}")
    os.mkdir("/tmp/.old")
    check(libc.pivot_root(b"/tmp", b"/tmp/.old"), "pivot_root")
    os.chdir("/")
    for name in ("dev", "tmp", "proc"):
        os.mkdir(f"/{name}")
    limits = f"size={size},nr_inodes={files + 1},mode=700,uid={owner},gid={owner}"
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, limits)
    for path in (*readable, *(f"/dev/{name}" for name in _DEVICES)):
        _bind_read_only(path)
    # For the semaphores of multiprocessing, under the limits of /tmp.
    os.symlink("/tmp", "/dev/shm")
    try:
        _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "hidepid=2,subset=pid")
    except OSError:
        os.rmdir("/proc")
    write("/program.py", program)
    check(libc.umount2(b"/.old", 2), "umount2")
    os.rmdir("/.old")
    _make_read_only("/", recursive=False)


def _bind_read_only(path: str) -> None:
    old = f"/.old{path}"
    if not os.path.lexists(old):
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.islink(old):
        os.symlink(os.readlink(old), path)
        return
    if os.path.isdir(old):
        os.mkdir(path)
    else:
        write(path, b"")
    _mount(old, path, None, _MS_BIND | _MS_REC)
    _make_read_only(path, recursive=True)


def restrict_files(readable: Sequence[str], writable: str) -> None:
    """Landlock: from now on nothing outside `readable`, `writable` and a few devices can be opened or changed.

    From Landlock's ABI 6 on, only processes that this one starts can be signalled either, by any means.
    """
    abi = _syscall(444, "landlock_create_ruleset", None, ctypes.c_size_t(0), ctypes.c_uint(1))
    rights = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    handled = struct.pack("QQQ", rights, 0, _SCOPE_SIGNAL) if abi >= 6 else struct.pack("Q", rights)
    ruleset = _syscall(444, "landlock_create_ruleset", handled, ctypes.c_size_t(len(handled)), ctypes.c_uint(0))
    read, write_file, rights_on_files = 0b1101, 0b10, 0b1100000000000111
    rules = [(path, read) for path in readable] + [(writable, rights)]
    rules += [(f"/dev/{name}", read | write_file) for name in _DEVICES]
    for path, allowed in rules:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if not os.path.isdir(path):
            allowed &= rights_on_files
        rule = struct.pack("=Qi", allowed & rights, place)
        _syscall(445, f"landlock_add_rule({path})", ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint(0))
        os.close(place)
    _syscall(446, "landlock_restrict_self", ctypes.c_int(ruleset), ctypes.c_uint(0))
    os.close(ruleset)
