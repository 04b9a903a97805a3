"""Runs programs where the sandbox is not there (yet): without any isolation, so only for these tests' own programs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

SANDBOX = "easydistill.verification.sandbox"


@dataclass(frozen=True)
class Limits:
    seconds: float = 10.0


@dataclass(frozen=True)
class Ran:
    outcome: str
    stdout: str


def run_program(source: str, *, stdin: str = "", limits: Limits | None = None) -> Ran:
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-X", "utf8", "-c", source],
            input=stdin.encode(),
            capture_output=True,
            timeout=(limits or Limits()).seconds,
        )
    except subprocess.TimeoutExpired:
        return Ran("timed_out", "")
    return Ran("ok" if done.returncode == 0 else "failed", done.stdout.decode("utf-8", "replace"))


@pytest.fixture(scope="session", autouse=True)
def sandbox() -> Iterator[None]:
    """The real one, or a stand-in of the same interface."""
    if importlib.util.find_spec(SANDBOX) is not None:
        yield
        return
    stand_in: Any = ModuleType(SANDBOX)
    stand_in.Limits, stand_in.Ran, stand_in.run_program = Limits, Ran, run_program
    sys.modules[SANDBOX] = stand_in
    yield
    del sys.modules[SANDBOX]
