"""Runs Python programs that a language model wrote, isolated from the machine, and leaves nothing of them behind.

    >>> result = run_program("print(int(input()) + 1)", stdin="41")
    >>> (result.outcome, result.stdout)
    ('ok', '42\\n')

Surface:

- `run_program(source, stdin=…, limits=…)` runs one program and returns a `RunResult`: `outcome`, what it printed, its
  exit code or signal, and the time it used. Nothing that a program does raises.
- `Sandbox(workers, limits)` runs many programs, a bounded number at a time, for any number of threads.
- `Limits` are time, memory, files, processes and output of one program.
- `protections()` reports what holds on this machine, measured by a program that tries.
- `SandboxError` is raised where programs cannot be run at all: on another system than Linux, or if this Python cannot
  be started in isolation. Its `hint` says what to change.

Guarantees, on every Linux machine: when a call returns, all processes of the program have ended, even those that moved
to another session; the same holds if the calling process is killed. Each program has a new Python with nothing but the
standard library, an environment and an empty directory of its own, no inherited descriptors beyond the standard three,
and limits on everything that Linux can limit. It cannot gain privileges. On x86-64 and arm64 a seccomp filter refuses
sockets, tracing, namespaces and memory that no limit counts. If this process is root, the program runs as a user
without an account. Where the kernel allows namespaces, the program sees no other processes, no network, and only
Python, `/usr` and an empty `/tmp` in memory. Elsewhere Landlock (Linux 5.13 and later) restricts the files that it can
open, and its directory is on disk and watched.

Limits of the isolation: it does not protect against bugs of the kernel or the processor, nor against timing side
channels. Programs may use the processor, memory and disk up to their limits, multiplied by the number of programs that
run at once. They can read what every user can read in `/usr` and in Python's directories. Without namespaces and
Landlock they can read what every user can read anywhere, and, if this process is not root, read and write what its user
can. With Landlock alone, modes and times of that user's files can still be changed. The sandbox is not a virtual
machine: run it inside one if programs may be malicious. And a program that passes its tests is not necessarily correct.

No signals are used, and any thread may call. The package uses the standard library only and imports nothing of the
package that contains it, so it also works on its own.
"""

from .errors import SandboxError
from .execution import Outcome, RunResult
from .probe import protections
from .runner import Sandbox, run_program
from .spec import Limits

__all__ = ["Limits", "Outcome", "RunResult", "Sandbox", "SandboxError", "protections", "run_program"]
