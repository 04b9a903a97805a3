"""A sink's process: `python -m easydistill.tracking.child`, started by the command that leads a run.

It reads a `Spec` from its input, then follows the run's files until a line there says how the run has ended. It writes
a line for every sign of life, and one if the sink fails. When the command is gone, so is this process, at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from easydistill.config.sink import SINKS, Figures, Sink, SinkConfig, SinkContext
from easydistill.data.files import read_json, write_json
from easydistill.tracking.follow import Follower, Sent, Superseded

POLL_SECONDS = 1.0
BATCH = 1000
"""Most figures that a sink is given at once."""
PARENT_GONE = 3
"""Exit code; nobody is left to read it."""


@dataclass(frozen=True)
class Spec:
    """What a sink's process is told, over a pipe: the settings may hold secrets."""

    sink: str
    settings: Mapping[str, Any]
    context: Mapping[str, Any]
    """Of `SinkContext`; `directory` as text."""
    run: str
    state: str
    """The file that says what the record has got already."""
    old: Mapping[str, int]
    """Sizes of the run's files when this start of it began."""


class Told:
    """What the command says: how the run has ended."""

    def __init__(self, stream: IO[str]) -> None:
        self.status = ""
        self._ended = threading.Event()
        threading.Thread(target=self._listen, args=(stream,), daemon=True).start()
        threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()

    def _listen(self, stream: IO[str]) -> None:
        status = stream.readline().strip()
        if not status:
            os._exit(PARENT_GONE)
        self.status = status
        self._ended.set()
        stream.read()
        os._exit(PARENT_GONE)

    def wait(self) -> bool:
        """Wait a moment; whether the run has ended."""
        return self._ended.wait(POLL_SECONDS)


def _watch_parent(parent: int) -> None:
    """End with the command. Processes that it has forked may hold the other end of the pipe after it."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(PARENT_GONE)


class Record:
    """A sink's record of the run, opened again with each start of the run."""

    def __init__(self, spec: Spec, say: Any) -> None:
        self._spec, self._say = spec, say
        module = SINKS.module(spec.sink)
        self._make = module.make
        self._config: SinkConfig = module.Config.model_validate(spec.settings)
        self._state_file = Path(spec.state)
        self._directory = Path(spec.context["directory"])
        self._attempt, self._sent = 1, Sent()
        if not self._config.rewritten:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                state = read_json(self._state_file)
                self._attempt, self._sent = int(state["attempt"]), dict(state["sent"])
        self._sink: Sink | None = None

    def follow(self, told: Told) -> bool:
        """Give the sink everything, to the end of the run; False if a new record is needed.

        That is another process's: libraries hold on to the files of the record that they have opened.
        """
        try:
            self._follow(told)
        except Superseded:
            if self._sink is not None:
                self._sink.close("interrupted")
            self._attempt += 1
            self._keep({})
            return False
        return True

    def _follow(self, told: Told) -> None:
        run, holds_back = Path(self._spec.run), not self._config.rewritten
        follower = Follower(run, self._spec.old, holds_back=holds_back, sent=dict(self._sent))
        self._sink = self._opened()
        self._say({"open": True})
        ended = False
        while True:
            found = follower.new(ended=ended and not holds_back)
            for at in range(0, len(found), BATCH):
                self._log(found[at : at + BATCH])
            if ended:
                break
            ended = told.wait()
        self._sink.close(told.status)

    def _opened(self) -> Sink:
        if self._config.rewritten:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True, exist_ok=True)
        about = dict(self._spec.context)
        again = self._attempt > 1 and not self._config.rewritten
        name = f"{about['id']}-{self._attempt}" if again else about["id"]
        sink: Sink = self._make(self._config, SinkContext(**{**about, "id": name, "directory": self._directory}))
        return sink

    def _log(self, figures: Sequence[Figures]) -> None:
        assert self._sink is not None
        before = dict(self._sent)
        self._sent |= {item.group: item.step for item in figures}
        # Before they are sent: figures are rather missed than doubled if this process is killed in between.
        self._keep(self._sent)
        try:
            self._sink.log(figures)
        except BaseException:
            self._keep(before)
            raise
        self._say({"logged": len(figures)})

    def _keep(self, sent: Sent) -> None:
        if not self._config.rewritten:
            write_json(self._state_file, {"attempt": self._attempt, "sent": sent})


def main() -> int:
    """Entry point; returns the exit code."""
    # The command hears Ctrl-C, and says how the run has ended.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(10)
    back = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # Libraries print; their words may hold a key.
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)

    def say(value: Mapping[str, Any]) -> None:
        back.write(json.dumps(value) + "\n")
        back.flush()

    spec = Spec(**json.loads(sys.stdin.readline()))
    told = Told(sys.stdin)
    try:
        say({"done" if Record(spec, say).follow(told) else "again": True})
    except BaseException as error:
        where = "".join(traceback.format_exception(error))
        say({"failed": f"{type(error).__name__}: {error}", "traceback": where})
        os._exit(1)
    # Not through the interpreter's end: threads of libraries would be waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
