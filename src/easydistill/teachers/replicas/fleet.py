"""Several servers of the same model: started together, watched, and started again when they die.

The first that is ready is asked at once; the others join when they are. A server that dies is away until it is ready
again, and what it was asked is asked elsewhere. One that never was ready, or that dies too often, is given up; deaths
of a request's making do not count.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from easydistill.engine.interrupt import StopSignal
from easydistill.engine.run_directory import LOGGER
from easydistill.errors import TeacherError
from easydistill.teachers.openai.retry import Fault, Verdict
from easydistill.teachers.openai.routing import Endpoint
from easydistill.teachers.replicas.server import Server

WATCH_SECONDS = 0.25
"""Time between two looks at whether the programs run."""
HEALTH_EVERY = 5.0
"""Seconds between two questions about the health of a server that is asked already."""
SILENCE = 120.0
"""Seconds without an answer about its health after which a server counts as dead: a busy one is slow to answer."""
RESTARTS, WITHIN = 3, 3600.0
"""A server is started again so often within so many seconds."""
TELL_EVERY = 30.0
"""Seconds between two lines about servers that load."""
UNHEALTHY = 503
"""Status of a server whose engine has died."""


@dataclass
class _Replica:
    number: int
    server: Server
    endpoint: Endpoint
    started: float = 0.0
    was_ready: bool = False
    heard: float = 0.0
    """When it was last known to be healthy."""
    asked: float = 0.0
    """When it was last asked."""
    deaths: deque[float] = field(default_factory=deque)
    given_up: str | None = None
    """Why, if it is."""


class Fleet:
    """The servers, and the thread that watches them.

    Args:
        members: each server with the endpoint by which it is asked.
        say: tells the user; called from the thread too.
        shown: hides secrets in a text.
        startup_timeout: seconds that a server may take until it is ready.
    """

    def __init__(
        self,
        members: Sequence[tuple[Server, Endpoint]],
        say: Callable[[str], None],
        shown: Callable[[str], str],
        startup_timeout: float,
    ) -> None:
        self._replicas = [_Replica(number, server, endpoint) for number, (server, endpoint) in enumerate(members)]
        self._say, self._shown, self._timeout = say, shown, startup_timeout
        self.error: TeacherError | None = None
        """Why none can be asked any more."""
        self._closing = threading.Event()
        self._changed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="replicas", daemon=True)

    def start(self) -> None:
        """Start the servers."""
        for replica in self._replicas:
            self._start(replica)
        self._thread.start()

    def first_ready(self, stop: StopSignal) -> Server | None:
        """Wait for a server that is ready; None if the user asked to stop before there was one.

        Raises:
            TeacherError: none is left.
        """
        while not stop.requested:
            if self.error is not None:
                raise self.error
            for replica in self._replicas:
                if not replica.endpoint.away:
                    return replica.server
            self._changed.wait(WATCH_SECONDS)
            self._changed.clear()
        return None

    def close(self) -> None:
        """End all servers."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        # All at once, for each may take seconds.
        for replica in self._replicas:
            replica.server.ask_to_stop()
        for replica in self._replicas:
            replica.server.stop()

    # --- one server -------------------------------------------------------------------------------------------

    def _start(self, replica: _Replica) -> None:
        replica.endpoint.away = True
        replica.server.start()
        replica.endpoint.url = replica.server.url
        replica.started = time.monotonic()
        LOGGER.info("server %s starts at %s", replica.number, replica.server.url)

    def _ready(self, replica: _Replica, now: float) -> None:
        replica.was_ready, replica.heard = True, now
        replica.endpoint.away = False
        self._changed.set()
        self._say(f"  server {replica.number} is ready after {now - replica.started:.0f} s")

    def _died(self, replica: _Replica, how: str, now: float) -> None:
        """Start it again, or give it up."""
        # The request is given up as soon as the death is known.
        to_blame = replica.endpoint.alone and not replica.endpoint.away
        replica.endpoint.went_away()
        tail = replica.server.tail()
        # What is left of it holds the device's memory.
        replica.server.stop(seconds=1.0)
        LOGGER.warning("server %s %s:\n%s", replica.number, how, self._shown("\n".join(tail)))
        if to_blame:
            # It has killed servers before, or it would not be alone.
            for one in self._replicas:
                one.deaths.clear()
            self._say(f"  server {replica.number} {how} over a single request; it is started again")
            self._start(replica)
            return
        while replica.deaths and replica.deaths[0] < now - WITHIN:
            replica.deaths.popleft()
        replica.deaths.append(now)
        if replica.was_ready and len(replica.deaths) <= RESTARTS:
            self._say(f"  server {replica.number} {how}; it is started again ({len(replica.deaths)} of {RESTARTS})")
            self._start(replica)
            return
        self._give_up(replica, how, tail)

    def _give_up(self, replica: _Replica, how: str, tail: Sequence[str]) -> None:
        replica.given_up = how
        replica.endpoint.refusal = Fault("connection", how, Verdict.FATAL)
        left = [other for other in self._replicas if other.given_up is None]
        if left:
            self._say(f"  server {replica.number} {how}; it is given up, and {len(left)} go on: {replica.server.log}")
            return
        when = "" if replica.was_ready else " before it was ready"
        lines = "".join(f"\n    {line}" for line in self._shown("\n".join(tail)).splitlines())
        self.error = TeacherError(
            f"server {replica.number} of inference.replicas {how}{when}{lines}\n"
            f"    → {self._hint(replica)}; everything it printed is in {replica.server.log}"
        )
        self._changed.set()

    def _hint(self, replica: _Replica) -> str:
        if replica.was_ready:
            return "the same command goes on, and asks for nothing it has already"
        if replica.given_up == self._too_slow():
            return "raise inference.startup_timeout"
        return "correct what it says (inference.max_model_len and gpu_memory_utilization decide its memory)"

    def _too_slow(self) -> str:
        return f"took longer than {self._timeout:g} s to start (inference.startup_timeout)"

    # --- the watch --------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            self._watch_all()
        except Exception as error:
            # Requests would wait for ever for a server that nobody starts.
            LOGGER.exception("the servers are not watched any more")
            self.error = TeacherError(f"the servers of inference.replicas cannot be watched: {error}")
            self._changed.set()

    def _watch_all(self) -> None:
        told = time.monotonic()
        while not self._closing.wait(WATCH_SECONDS):
            now = time.monotonic()
            if now - told > TELL_EVERY:
                told = now
                self._tell(now)
            for replica in self._replicas:
                if replica.given_up is None and not self._closing.is_set():
                    self._look(replica)

    def _look(self, replica: _Replica) -> None:
        now = time.monotonic()
        if (how := replica.server.how_it_ended()) is not None:
            self._died(replica, how, now)
        elif replica.endpoint.away:
            if replica.server.health() == 200:
                self._ready(replica, time.monotonic())
            elif now - replica.started > self._timeout:
                self._died(replica, self._too_slow(), now)
        elif now - replica.asked > HEALTH_EVERY:
            status = replica.server.health()
            replica.asked = time.monotonic()
            if status == UNHEALTHY:
                self._died(replica, f"says that it is not well (HTTP {status})", now)
            elif status is not None:
                replica.heard = replica.asked
            elif replica.asked - replica.heard > SILENCE:
                self._died(replica, f"has not answered for {SILENCE:g} s", now)

    def _tell(self, now: float) -> None:
        """Tell what servers do that are not ready yet."""
        for replica in self._replicas:
            if replica.endpoint.away and replica.given_up is None:
                last = [line for line in replica.server.tail() if line.strip()][-1:]
                doing = f": {self._shown(last[0].strip())[:160]}" if last else ""
                self._say(f"  server {replica.number} still starts ({now - replica.started:.0f} s){doing}")
