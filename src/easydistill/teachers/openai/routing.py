"""Chooses among several servers: the one with the fewest requests in flight, among those that work.

A server whose requests keep failing rests for a while and is then tried with a single request; if that is answered, the
server is used again. If no other server is left, resting ones are asked as well. A server that refuses all requests
(its key, its model, its credit) is not asked again until the next call of `generate`.

Pure: methods that need the time take it, in seconds of any steady clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from easydistill.teachers.openai.features import Features
from easydistill.teachers.openai.retry import LONGEST_RETRY_AFTER, Fault, Verdict
from easydistill.teachers.openai.window import Window

FAILURES = 5
"""Faults in a row after which a server rests."""
FIRST_REST = 1.0
LONGEST_REST = 30.0
AWAY_SECONDS = 0.2
"""Time between two looks at whether a server that is away is back."""


class Endpoint:
    """One server and its state."""

    def __init__(self, url: str, window: Window) -> None:
        self.url = url
        self.window = window
        self.features = Features()
        self.pending = 0
        self.refusal: Fault | None = None
        """Why it refuses all requests, if it does."""
        self.away = False
        """Whether it does not run at present, and will."""
        self.deaths = 0
        """How often it has gone away."""
        self.alone = False
        """Whether it has a request that must have nothing beside it."""
        self._failures = 0
        self._rest = 0.0
        self._resting_until = -math.inf

    def is_well(self) -> bool:
        """Whether it works, as far as is known."""
        return self.refusal is None and not self.away and self._rest == 0

    def went_away(self) -> None:
        """It has died; who watches it starts it again."""
        self.away = True
        self.deaths += 1

    def may_be_tried(self, now: float) -> bool:
        """Whether it works, or has rested long enough to be tried with one request."""
        return self._rest == 0 or (now >= self._resting_until and self.pending == 0)

    def rest_left(self, now: float) -> float:
        return max(0.0, self._resting_until - now) if self._rest else 0.0

    def started(self, now: float, *, alone: bool = False) -> int:
        self.pending += 1
        self.alone = alone
        return self.window.started(now)

    def dropped(self, number: int) -> None:
        """A request ended in a way that says nothing about the server."""
        self._ended()
        self.window.failed(number)

    def answered(self, number: int, seconds: float, tokens: int) -> None:
        self.window.answered(number, seconds, tokens, self.pending)
        self._ended()
        self._recovered()

    def faulted(self, number: int, fault: Fault, now: float) -> None:
        self._ended()
        if fault.retry_after is not None and fault.retry_after <= LONGEST_RETRY_AFTER:
            self.window.hold(now + fault.retry_after)
        if fault.overload:
            self.window.refused(number)
        else:
            self.window.failed(number)
        if fault.verdict is Verdict.REJECT or fault.reason == "rate_limit":
            self._recovered()
        elif fault.verdict is Verdict.RETRY:
            self._failed(now)

    def _ended(self) -> None:
        self.pending -= 1
        self.alone = False

    def _recovered(self) -> None:
        self._failures, self._rest = 0, 0.0

    def _failed(self, now: float) -> None:
        self._failures += 1
        if now >= self._resting_until and (self._rest or self._failures >= FAILURES):
            self._rest = min(LONGEST_REST, 2 * self._rest or FIRST_REST)
            self._resting_until = now + self._rest


class Router:
    """Chooses among servers."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = tuple(endpoints)

    @property
    def pending(self) -> int:
        return sum(endpoint.pending for endpoint in self.endpoints)

    def reopen(self) -> None:
        """Try servers again that refused all requests."""
        for endpoint in self.endpoints:
            endpoint.refusal = None

    def all_refuse(self) -> bool:
        return all(endpoint.refusal is not None for endpoint in self.endpoints)

    def has_another(self, than: Endpoint) -> bool:
        """Whether a server other than `than` works."""
        return any(endpoint is not than and endpoint.is_well() for endpoint in self.endpoints)

    def choose(self, now: float, avoid: Endpoint | None = None, *, alone: bool = False) -> Endpoint | float:
        """A server with room for a request, or the seconds until there may be one (∞: until a request ends).

        Args:
            avoid: chosen only if no other server works.
            alone: whether the request must have nothing beside it.
        """
        open_ones = [endpoint for endpoint in self.endpoints if endpoint.refusal is None and not endpoint.away]
        usable = [endpoint for endpoint in _usable(open_ones, now) if not endpoint.alone]
        free = [one for one in usable if one.pending < (1 if alone else one.window.limit)]
        ready = [endpoint for endpoint in free if endpoint.window.delay(now) == 0]
        if ready:
            return min(ready, key=lambda endpoint: (endpoint is avoid, endpoint.pending))
        waits = [endpoint.window.delay(now) for endpoint in free]
        waits += [left for endpoint in open_ones if (left := endpoint.rest_left(now)) > 0]
        waits += [AWAY_SECONDS for endpoint in self.endpoints if endpoint.away and endpoint.refusal is None]
        return min(waits, default=math.inf)


def _usable(open_ones: list[Endpoint], now: float) -> list[Endpoint]:
    """Those that may be tried. If no server works, all are asked: each request has its own retries and back-off."""
    if not any(endpoint.is_well() for endpoint in open_ones):
        return open_ones
    return [endpoint for endpoint in open_ones if endpoint.may_be_tried(now)]
