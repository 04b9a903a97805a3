"""A command that helps another one's run: it starts its processes of the stages that train, and ends as that one."""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from easydistill.config.job import JobConfig
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.run_directory import LOGGER
from easydistill.errors import EXIT_FAILED, EXIT_INTERRUPTED, EasyDistillError, Interrupted
from easydistill.launch.failures import follows_another
from easydistill.launch.network import interface_variables
from easydistill.launch.place import Place
from easydistill.launch.processes import TRACEBACK, Share, run_processes
from easydistill.launch.rendezvous import find
from easydistill.launch.tasks import task_from_json
from easydistill.launch.wire import KEY, VERSION, Link, Unseen, read_key

ARRIVE = 600.0
"""Seconds that the first command may come later than this one."""
AGAIN = 0.5
"""Seconds between two attempts to reach it."""
UNSEEN = 15.0
"""Seconds until a file that another machine has written must be seen here."""
LOOK = 0.2
"""Seconds between two looks at the user's request to stop."""


class LeaderLost(EasyDistillError, RuntimeError):
    """The first command is gone, or cannot be reached."""


class NotShared(EasyDistillError, ValueError):
    """The run directory is not on storage that this machine shares with the first."""


class _Aborted(Exception):
    """The first command has ended the stage."""


@dataclass(frozen=True)
class End:
    """How the run has ended, as the first command tells."""

    exit_code: int
    text: str


class Helper:
    """This command's side of its connection to the first."""

    def __init__(
        self, place: Place, job: JobConfig, run_directory: Path, stop: StopSignal, say: Callable[[str], None]
    ) -> None:
        self._place = place
        self._job = job
        self._directory = run_directory
        self._stop = stop
        self._say = say
        self._heard: queue.Queue[dict[str, Any]] = queue.Queue()
        self._asked_to_stop = False
        self._key = b""
        self._link: Link

    def help(self, ranks: int) -> End:
        """Connect, and take part in the run to its end.

        Args:
            ranks: processes that it starts if the config leaves the number open.

        Raises:
            LeaderLost: the first command is gone.
            NotShared: this machine does not see its run directory.
            Interrupted: stopped by the user while nobody else was there.
        """
        self._link = self._connect(ranks)
        # Errors are told to the first command, whose log has them.
        LOGGER.addHandler(logging.NullHandler())
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            return self._to_the_end()
        finally:
            self._link.close()

    def _to_the_end(self) -> End:
        while True:
            message = self._next()
            if message is not None and "end" in message:
                return End(**message["end"])
            if message is not None and "stage" in message:
                self._train(message)

    # --- joining --------------------------------------------------------------------------------------------------

    def _connect(self, ranks: int) -> Link:
        about = {
            "version": VERSION,
            "index": self._place.index,
            "count": self._place.count,
            "run_directory": str(self._directory.absolute()),
            "ranks": ranks,
            "local_rank": self._place.local_rank or 0,
            "local_size": self._place.local_size or ranks,
            "host": socket.gethostname(),
        }
        until, unseen, told = time.monotonic() + ARRIVE, 0.0, False
        while True:
            if self._stop.requested:
                raise Interrupted("stopped at the user's request")
            try:
                link = self._greeted(about)
            except Unseen:
                unseen = unseen or time.monotonic() + UNSEEN
                if time.monotonic() > unseen:
                    raise NotShared(self._not_shared()) from None
            except (OSError, EOFError) as error:
                if time.monotonic() > until:
                    title = self._place.title(0)
                    raise LeaderLost(
                        f"{title} did not come within {ARRIVE:.0f} seconds: {error}\n"
                        "    → start the same command there; host and port must be those at which it can be reached"
                    ) from None
                if not told:
                    self._say(f"waiting for {self._place.title(0)}{self._where()}")
                    told = True
            else:
                self._say(f"{self._place.title(self._place.index)} of {self._place.count} has joined")
                return link
            time.sleep(AGAIN)

    def _greeted(self, about: dict[str, Any]) -> Link:
        link = Link(socket.create_connection(find(self._place), timeout=AGAIN * 10))
        try:
            # Read anew each time: the first command makes it when it starts.
            self._key = read_key(self._directory)
            link.greet(self._key, about)
            answer = link.receive()
        except BaseException:
            link.close()
            raise
        if "refused" in answer:
            link.close()
            raise EasyDistillError(answer["refused"])
        return link

    def _not_shared(self) -> str:
        found = "has another run's key here" if self._key else "is not here"
        if not self._key and (self._directory / KEY).exists():
            found = f"has a key that this user may not read here ({KEY})"
        return (
            f"the run directory of {self._place.title(0)} {found}: {self._directory.absolute()}\n"
            "    → put output_dir on storage that all machines see under the same path"
        )

    def _where(self) -> str:
        address = self._place.address
        return f" at {address[0]}:{address[1]}" if address is not None else ""

    # --- messages -------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        try:
            while True:
                message = self._link.receive()
                if message.get("stop"):
                    self._stop.request()
                else:
                    self._heard.put(message)
        except (EOFError, OSError):
            self._heard.put({"lost": True})

    def _next(self) -> dict[str, Any] | None:
        """The next message; None if there is none yet."""
        if self._stop.requested:
            self.ask_to_stop()
        try:
            message = self._heard.get(timeout=LOOK)
        except queue.Empty:
            return None
        if "lost" in message:
            raise self._lost()
        return message

    def _lost(self) -> LeaderLost:
        return LeaderLost(
            f"{self._place.title(0)} is gone\n"
            "    → start the same commands again: the run resumes from the last checkpoint"
        )

    # --- training -------------------------------------------------------------------------------------------------

    def _train(self, message: dict[str, Any]) -> None:
        """Run this command's processes of a stage, and tell how they end."""
        share = Share(**message["share"])
        if not share.network:
            share = replace(share, network=interface_variables(self._link.here))
        try:
            task = task_from_json(message["stage"], self._key, self._job)
            run_processes(task, share, task.directory / "processes", self._stop, self)
        except _Aborted:
            return
        except LeaderLost:
            raise
        except Exception as error:
            self._answer(failed=_as_message(error))
        else:
            self._answer(did=True)

    def _answer(self, **message: Any) -> None:
        # That the first command is gone is found by the thread that listens.
        with contextlib.suppress(OSError):
            self._link.send(**message)

    def failure(self) -> Exception | None:
        """See `processes.Others`."""
        try:
            message = self._heard.get_nowait()
        except queue.Empty:
            return None
        return self._lost() if "lost" in message else _Aborted()

    def finished(self) -> bool:
        """See `processes.Others`: this command waits for its own processes only."""
        return True

    def ask_to_stop(self) -> None:
        """Have the first command stop the run."""
        if not self._asked_to_stop:
            self._asked_to_stop = True
            self._answer(stop=True)


def _as_message(error: Exception) -> dict[str, Any]:
    code = EXIT_INTERRUPTED if isinstance(error, Interrupted) else getattr(error, "exit_code", EXIT_FAILED)
    text = str(error) if isinstance(error, EasyDistillError) else f"{type(error).__name__}: {error}"
    return {
        "text": text,
        "exit_code": code,
        "follows": follows_another(error),
        "traceback": getattr(error, TRACEBACK, None) or "".join(traceback.format_exception(error)),
    }
