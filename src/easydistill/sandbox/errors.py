"""The errors of the sandbox: it cannot run programs here. What a program does raises none of them."""

from __future__ import annotations


class SandboxError(RuntimeError):
    """No program can be run in a sandbox on this machine.

    Args:
        problem: what is wrong, in one line.
        hint: how to fix it; empty where nothing is known to help.
    """

    def __init__(self, problem: str, hint: str = "") -> None:
        self.problem, self.hint = problem, hint
        super().__init__(f"{problem}\n    → {hint}" if hint else problem)


class SupervisorError(SandboxError):
    """The supervisor of a run could not isolate the program as requested, so the program never started."""
