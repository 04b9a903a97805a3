"""Runs a program until its standard input ends, then ends it: `python guard.py SECONDS PROGRAM ARGUMENTS…`.

Standard input ends when the process that started this one ends, however that happens. The program is first asked to
stop, and after SECONDS killed with everything that it has started: guard and program are a process group of their own.
Imports only what starts in no time.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from typing import NoReturn

PR_SET_PDEATHSIG = 1


def _die_with_guard() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill_all() -> NoReturn:
    os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _end(program: "subprocess.Popen[bytes]", seconds: float, ending: threading.Event) -> None:
    sys.stdin.buffer.read()
    ending.set()
    program.terminate()
    time.sleep(seconds)
    _kill_all()


def main() -> int:
    """Entry point; the program's exit code, or 128 and the number of the signal that ended it."""
    assert os.getpgrp() == os.getpid(), "start it in a session of its own"
    # No other thread exists yet, so that a function may run between fork and exec.
    program = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, preexec_fn=_die_with_guard)
    ending = threading.Event()
    threading.Thread(target=_end, args=(program, float(sys.argv[1]), ending), daemon=True).start()
    code = program.wait()
    if ending.is_set():
        # Nobody may be left to do it.
        _kill_all()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    # Not through the interpreter's end, which waits for standard input.
    os._exit(main())
