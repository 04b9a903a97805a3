"""What a program may use (`Limits`), how it is isolated (`Isolation`), and the message that tells its supervisor."""

from __future__ import annotations

import marshal
import os
import pwd
import random
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

_SYSTEM_PATHS = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/etc/ld.so.cache",
    "/etc/localtime",
)


@dataclass(frozen=True)
class Limits:
    """What one program may use. Where nothing else is stated, all its processes share the limit."""

    seconds: float = 10.0
    """Wall-clock time."""
    cpu_seconds: float = 10.0
    """Processor time, including the start of Python."""
    memory: int = 512 << 20
    """Bytes of address space for each process, and of memory in use for all of them together."""
    file_size: int = 16 << 20
    """Bytes of the largest file it may write."""
    directory_bytes: int = 64 << 20
    directory_files: int = 1000
    """Files, directories and links."""
    processes: int = 32
    """Processes and threads."""
    open_files: int = 64
    """Descriptors of each process."""
    output_bytes: int = 1 << 20
    """Of standard output, and separately of standard error."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"the limit {name} must be positive, not {value}")


@dataclass(frozen=True)
class Isolation:
    """The mechanisms that isolate programs on this machine."""

    namespaces: bool
    seccomp: bool
    landlock: bool
    executable: str
    """The Python that runs programs."""
    prefixes: tuple[str, ...]
    """Where its standard library is."""
    refusal: str = ""
    """Why the strictest isolation did not work."""


@dataclass(frozen=True)
class RunSpec:
    """All that a supervisor needs to know, apart from the program."""

    command: list[str]
    """Its last word is the program's file."""
    environment: dict[str, str]
    namespaces: bool
    seccomp: bool
    landlock: bool
    user: int | None
    """The user id under which the program runs; None keeps that of this process."""
    readable: list[str]
    directory: str
    """Where the program may write; `/tmp` in namespaces."""
    limits: Limits

    def packed(self, program: bytes) -> bytes:
        """The message to the supervisor: two lengths, this spec, the program."""
        text = marshal.dumps(asdict(self))
        return struct.pack("QQ", len(text), len(program)) + text + program


def make_spec(isolation: Isolation, limits: Limits, user: int | None, base: Path | None) -> RunSpec:
    """The spec of one run.

    Args:
        base: the run's directory on disk (see `fresh_directory`); None with namespaces.
    """
    directory = "/tmp" if base is None else str(base / "box")
    program = "/program.py" if base is None else str(base / "program.py")
    # A fixed seed, because the iteration order of sets must not change a program's result.
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": directory, "TMPDIR": directory}
    environment["PYTHONHASHSEED"] = "0"
    if "LD_LIBRARY_PATH" in os.environ:  # some Python builds need it to find their own library
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return RunSpec(
        # Isolated mode (-I) without -E, which would ignore PYTHONHASHSEED.
        command=[isolation.executable, "-P", "-s", "-S", "-B", "-X", "utf8", program],
        environment=environment,
        namespaces=isolation.namespaces,
        seccomp=isolation.seccomp,
        landlock=isolation.landlock,
        user=user,
        readable=_without_nested((*_SYSTEM_PATHS, *isolation.prefixes)),
        directory=directory,
        limits=limits,
    )


def _without_nested(paths: Iterable[str]) -> list[str]:
    """The paths that are not inside another one of them."""
    kept: list[str] = []
    for path in sorted(set(paths), key=len):
        if not any(Path(path).is_relative_to(other) for other in kept):
            kept.append(path)
    return kept


def unused_user_id() -> int | None:
    """A random user id without an account, if this process may switch to one; None otherwise.

    Under such an id, limits per user and file permissions apply to the program alone.
    """
    if os.geteuid() != 0:
        return None
    rows = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    first, _, count = max(rows, key=lambda row: row[2])
    last = min(first + count, 0x70000000)
    if count < 1000:
        return None  # a user namespace with root and few other ids
    while True:
        user = random.SystemRandom().randrange(first + (last - first) // 2, last)
        try:
            pwd.getpwuid(user)
        except KeyError:
            return user
