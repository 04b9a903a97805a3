"""A worker process: `python -m easydistill.teachers.pool.process FD`.

It reads a `TeacherSpec` and then messages from its input, and writes what it tells to the file descriptor. When the
parent is gone, so is this process, with all that it has started.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from queue import SimpleQueue
from typing import IO, Any

from easydistill.engine.machine.memory import be_ended_first
from easydistill.launch.messages import receive, send
from easydistill.teachers.pool.worker import Inbox, serve


def main() -> None:
    """Serve until told to stop."""
    be_ended_first()
    # The parent hears Ctrl-C; what is in hand is finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Launchers, Slurm and systemd send this one to every process. A handler, as what is started here would inherit that
    # a signal is ignored.
    signal.signal(signal.SIGTERM, lambda *_: None)
    back = os.fdopen(int(sys.argv[1]), "wb")
    try:
        spec = receive(sys.stdin.buffer)
    except EOFError:
        return
    inbox: Inbox = SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, inbox), daemon=True).start()

    def tell(message: Any) -> None:
        send(back, message)

    serve(spec, inbox, tell)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through the interpreter's end: libraries' threads would be waited for.
    os._exit(0)


def _listen(stream: IO[bytes], inbox: Inbox) -> None:
    try:
        while True:
            inbox.put(receive(stream))
    except EOFError:
        os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
