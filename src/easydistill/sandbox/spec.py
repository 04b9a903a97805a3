"""What a program in the sandbox may use, and what its supervisor is told about it and this machine."""

from __future__ import annotations

import marshal
import os
import pwd
import random
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/ld.so.cache", "/etc/localtime")


@dataclass(frozen=True)
class Limits:
    """What one program may use, all its processes together unless it says otherwise."""

    seconds: float = 10.0
    """Wall-clock time."""
    cpu_seconds: float = 10.0
    """Processor time, the start of Python included."""
    memory: int = 512 << 20
    """Bytes: of address space for each process, and of memory in use for all."""
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
    """Of standard output, and again of standard error."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"a program needs more than no {name}, not {value}")


@dataclass(frozen=True)
class Plan:
    """How programs are shut in on this machine."""

    namespaces: bool
    filter_calls: bool
    landlock: bool
    executable: str
    prefixes: tuple[str, ...]
    """Where the standard library is."""
    refused: str = ""
    """Why not more."""


@dataclass(frozen=True)
class Spec:
    """All that a supervisor is told, the program aside."""

    command: list[str]
    """Its last word is the program's file."""
    environment: dict[str, str]
    namespaces: bool
    filter_calls: bool
    landlock: bool
    user: int | None
    """The id that the program gets; None leaves it this process's."""
    readable: list[str]
    directory: str
    """Where the program may write: `/tmp` in namespaces."""
    limits: Limits

    def packed(self, program: bytes) -> bytes:
        text = marshal.dumps(asdict(self))
        return struct.pack("QQ", len(text), len(program)) + text + program


def spec_of(plan: Plan, limits: Limits, user: int | None, base: Path | None) -> Spec:
    """What to tell. `base` is the directory on disk, where there are no namespaces."""
    directory = "/tmp" if base is None else str(base / "box")
    program = "/program.py" if base is None else str(base / "program.py")
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": directory, "TMPDIR": directory}
    if "LD_LIBRARY_PATH" in os.environ:  # without it, some Pythons do not find themselves
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return Spec(
        # As -I, but for the seed: the order of sets must not change what a program is worth.
        command=[plan.executable, "-P", "-s", "-S", "-B", "-X", "utf8", program],
        environment=environment | {"PYTHONHASHSEED": "0"},
        namespaces=plan.namespaces,
        filter_calls=plan.filter_calls,
        landlock=plan.landlock,
        user=user,
        readable=_outermost((*_SYSTEM, *plan.prefixes)),
        directory=directory,
        limits=limits,
    )


def _outermost(paths: Iterable[str]) -> list[str]:
    kept: list[str] = []
    for path in sorted(set(paths), key=len):
        if not any(Path(path).is_relative_to(other) for other in kept):
            kept.append(path)
    return kept


def unused_user() -> int | None:
    """An id that nobody has, where this process may take one: limits and permissions then hold for the program."""
    if os.geteuid() != 0:
        return None
    rows = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    first, _, count = max(rows, key=lambda row: row[2])
    last = min(first + count, 0x70000000)
    if count < 1000:
        return None  # a namespace with root and hardly anybody else
    while True:
        user = random.SystemRandom().randrange(first + (last - first) // 2, last)
        try:
            pwd.getpwuid(user)
        except KeyError:
            return user
