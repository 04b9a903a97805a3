"""The commands that share a run, seen from the first, which leads: it runs the stages, and the others help it train.

They connect whenever they are ready, wait as long as the first labels or scores, take part in the stages that train,
and end with the run's exit code. One that is lost while nothing is trained may come back; one that is lost in training
ends the run.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from easydistill.engine.interrupt import StopSignal
from easydistill.engine.run_directory import LOGGER
from easydistill.errors import EXIT_INTERRUPTED, ConfigError, ConfigIssue, EasyDistillError, Interrupted
from easydistill.launch.failures import FollowingError
from easydistill.launch.messages import LostError, Outcome, Task
from easydistill.launch.network import interface_variables
from easydistill.launch.place import Place
from easydistill.launch.processes import Share, free_port, run_processes
from easydistill.launch.rendezvous import listen
from easydistill.launch.tasks import task_to_json
from easydistill.launch.wire import KEY, VERSION, Link, Refused, write_key

JOIN = 600.0
"""Seconds that a stage which trains waits for the others."""
FAREWELL = 25.0
"""Seconds that a run which has ended waits for those that have not come yet, to tell them."""
LOOK = 0.2
"""Seconds between two looks at the user's request to stop."""


class NodeLost(EasyDistillError, RuntimeError):
    """Another command of the run is gone."""


@dataclass
class _Helper:
    link: Link
    ranks: int
    """Processes that it starts if the config leaves the number open."""
    local_rank: int
    local_size: int
    """Of its machine, if it has one process there of several."""
    host: str
    busy: bool = False

    @property
    def near(self) -> bool:
        """Whether it is on this machine."""
        return self.link.here == self.link.there


class Crew:
    """The other commands of this run."""

    def __init__(self, place: Place, run_directory: Path, stop: StopSignal, say: Callable[[str], None]) -> None:
        self.place = place
        self._directory = run_directory
        self._stop = stop
        self._say = say
        self._key = write_key(run_directory)
        self._helpers: dict[int, _Helper] = {}
        self._failures: list[Exception] = []
        self._training = False
        self._ended: dict[str, Any] | None = None
        self._told: set[int] = set()
        self._refused: set[str] = set()
        self._changed = threading.Condition()
        try:
            self._listener = listen(place)
        except OSError as error:
            assert place.address is not None, "any port was asked for"
            problem = f"port {place.address[1]} cannot be used on this machine: {error}"
            hint = "let host:port name the first machine and a port that is free there"
            raise ConfigError(ConfigIssue("config", "launch.rendezvous", problem, hint)) from None
        threading.Thread(target=self._accept, daemon=True).start()

    # --- joining --------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def _hear(self, connection: socket.socket) -> None:
        """Serve one connection to its end."""
        link = Link(connection)
        try:
            about = link.welcome(self._key)
            index = int(about["index"])
            reason = self._admit(index, about, link)
            if reason is not None:
                link.send(refused=reason)
                link.close()
                return
        except Refused as error:
            self._say_refused(str(error))
            link.close()
            return
        except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError):
            # Somebody who does not speak this language, or has gone already.
            link.close()
            return
        self._listen_to(index, link)

    def _say_refused(self, why: str) -> None:
        """Once: who is refused may try again, twice a second."""
        with self._changed:
            if why in self._refused:
                return
            self._refused.add(why)
        self._say(f"  refused: {why}")

    def _admit(self, index: int, about: dict[str, Any], link: Link) -> str | None:
        """Let a command take its place; a reason why not."""
        directory = str(self._directory.absolute())
        title = self.place.title(index)
        if about["version"] != VERSION:
            return f"easydistill is {about['version']} here and {VERSION} on the first machine"
        if about["run_directory"] != directory:
            return f"the run directory is {about['run_directory']} here and {directory} on the first machine"
        with self._changed:
            if about["count"] != self.place.count or not 0 < index < self.place.count:
                return f"this is {index} of {about['count']}, but the first command knows {self.place.count}"
            if index in self._helpers:
                return f"there is a {title} already, at {self._helpers[index].link.there}"
            link.send(welcome=True)
            self._told.discard(index)
            if self._ended is not None:
                self._tell_end(index, link)
            self._helpers[index] = _Helper(
                link, about["ranks"], about["local_rank"], about["local_size"], about["host"]
            )
            self._changed.notify_all()
        LOGGER.info("%s has joined from %s", title, link.there)
        return None

    def _listen_to(self, index: int, link: Link) -> None:
        try:
            while True:
                self._take(index, link.receive())
        except (EOFError, Refused) as error:
            self._lose(index, link, str(error))

    def _take(self, index: int, message: dict[str, Any]) -> None:
        with self._changed:
            if message.get("stop"):
                self._stop.request()
            if message.get("did"):
                self._helpers[index].busy = False
            if (failed := message.get("failed")) is not None:
                self._helpers[index].busy = False
                self._failures.append(self._error(index, failed))
            self._changed.notify_all()

    def _error(self, index: int, failed: dict[str, Any]) -> Exception:
        LOGGER.error("%s failed:\n%s", self.place.title(index), failed["traceback"])
        if failed["exit_code"] == EXIT_INTERRUPTED:
            return Interrupted(failed["text"])
        alone = self.place.local_rank is not None
        text = failed["text"] if alone else f"{self.place.title(index)}: {failed['text']}"
        return (FollowingError if failed["follows"] else LostError)(text, failed["exit_code"])

    def _lose(self, index: int, link: Link, why: str) -> None:
        title = self.place.title(index)
        with self._changed:
            helper = self._helpers.pop(index, None)
            self._told.add(index)
            if self._training and helper is not None and helper.busy:
                text = (
                    f"{title} ({helper.host}) is gone{f': {why}' if why else ''}\n    → start the same commands again"
                )
                self._failures.append(NodeLost(f"{text}: the run resumes from the last checkpoint"))
            elif self._ended is None:
                self._say(f"  {title} is gone; it may be started again until the next training begins")
            self._changed.notify_all()
        link.close()

    # --- training -------------------------------------------------------------------------------------------------

    def run(self, task: Task, own: int, logs: Path) -> Outcome:
        """Run a stage in processes of all commands; the outcome of the first process.

        Args:
            own: processes of this command.

        Raises:
            NodeLost: a command has not come, or has gone.
            Exception: the error of the process that failed first.
        """
        with self._changed:
            self._gather()
            shares = self._shares(own, task)
            sent = task_to_json(task, self._key)
            self._failures.clear()
            self._training = True
            for index, helper in self._helpers.items():
                helper.busy = True
                # Who has gone already is found by the thread that listens.
                with contextlib.suppress(OSError):
                    helper.link.send(stage=sent, share=asdict(shares[index]))
        where = f" on {self.place.nodes} nodes" if self.place.nodes > 1 else ""
        self._say(f"  {shares[0].world} processes{where} ({task.launch.sharing})")
        try:
            return run_processes(task, shares[0], logs, self._stop, self)
        except BaseException:
            self._tell(abort=True)
            raise
        finally:
            with self._changed:
                self._training = False

    def _gather(self) -> None:
        """Wait for the commands that are not there yet."""
        until = time.monotonic() + JOIN
        said = False
        with self._changed:
            while missing := self._missing():
                names = ", ".join(self.place.title(index) for index in missing)
                if not said:
                    self._say(f"  waiting for {names}")
                    said = True
                self._stop.raise_if_requested()
                if time.monotonic() > until:
                    raise NodeLost(
                        f"{names} did not come within {JOIN:.0f} seconds\n    → start the same command on every "
                        "machine, with the same host and port of the first, and see what it says there"
                    )
                self._changed.wait(LOOK)

    def _missing(self) -> list[int]:
        return [index for index in range(1, self.place.count) if index not in self._helpers]

    def _shares(self, own: int, task: Task) -> list[Share]:
        """Each command's processes, by its index."""
        asked = task.launch.processes
        counts = [own]
        for index in range(1, self.place.count):
            ranks = self._helpers[index].ranks
            counts.append(ranks if asked == "auto" or self.place.local_rank is not None else asked)
        # Those on this machine may have come by the loopback.
        far = [helper for helper in self._helpers.values() if not helper.near]
        address = (far or list(self._helpers.values()))[0].link.here
        network, port = interface_variables(address), free_port()
        shares = []
        for index, count in enumerate(counts):
            share = Share(count, sum(counts[:index]), sum(counts), address=address, port=port, network={})
            if index == 0 or self._helpers[index].near:
                share = replace(share, network=network)
            if self.place.local_rank is not None:
                # Each has one process, whose number on its machine the launcher has told.
                at = self._helpers[index] if index else self.place
                share = replace(share, first_here=at.local_rank or 0, here=at.local_size)
            shares.append(share)
        return shares

    def failure(self) -> Exception | None:
        """See `processes.Others`."""
        with self._changed:
            return self._failures.pop(0) if self._failures else None

    def finished(self) -> bool:
        """See `processes.Others`."""
        with self._changed:
            return not self._failures and not any(helper.busy for helper in self._helpers.values())

    def ask_to_stop(self) -> None:
        """See `processes.Others`."""
        self._tell(stop=True)

    def _tell(self, **message: Any) -> None:
        with self._changed:
            for helper in self._helpers.values():
                with contextlib.suppress(OSError):
                    helper.link.send(**message)

    # --- the end --------------------------------------------------------------------------------------------------

    def end(self, exit_code: int, text: str) -> None:
        """Tell all how the run has ended, also those that come within the next `FAREWELL` seconds."""
        with self._changed:
            self._ended = {"exit_code": exit_code, "text": text}
            for index, helper in self._helpers.items():
                self._tell_end(index, helper.link)
            until = time.monotonic() + FAREWELL
            if missing := [self.place.title(index) for index in self._missing() if index not in self._told]:
                self._say(
                    f"  waiting {FAREWELL:.0f} seconds for {', '.join(missing)}, to tell them that the run has ended"
                )
            while len(self._told) < self.place.count - 1 and time.monotonic() < until:
                self._changed.wait(LOOK)
        # Closing alone does not wake the thread that accepts.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        (self._directory / KEY).unlink(missing_ok=True)

    def _tell_end(self, index: int, link: Link) -> None:
        with contextlib.suppress(OSError):
            link.send(end=self._ended)
        self._told.add(index)
        self._changed.notify_all()
