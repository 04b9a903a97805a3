"""Ctrl-C: once finishes the work in progress; launchers pass on what the terminal has sent already."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from easydistill.engine.interrupt import StopSignal
from easydistill.errors import EXIT_INTERRUPTED

TWICE = """
import os, signal, sys
from easydistill.engine.interrupt import StopSignal
with StopSignal().listening(patience=float(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
sys.exit(7)
"""


@pytest.mark.parametrize(("patience", "code"), [("0", EXIT_INTERRUPTED), ("60", 7)])
def test_a_second_signal(patience: str, code: int) -> None:
    ended = subprocess.run([sys.executable, "-c", TWICE, patience], capture_output=True, check=False, timeout=60)
    assert ended.returncode == code
    assert ended.stderr.count(b"stopping: finishing the work in progress") == 1


def test_a_signal_requests_a_stop_while_it_listens() -> None:
    stop = StopSignal()
    before = signal.getsignal(signal.SIGTERM)
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested
    assert signal.getsignal(signal.SIGTERM) is before
