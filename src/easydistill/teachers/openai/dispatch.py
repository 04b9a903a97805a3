"""Starts requests one after the other, each when a server, the rate limits and the budget have room for it.

Requests queue in order; only the first in line watches the clock, so that a start costs the same with ten waiting
as with a thousand.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from easydistill.contracts.teacher import Completion
from easydistill.teachers.ledger import Ledger, is_counted
from easydistill.teachers.openai.limits import RateLimits
from easydistill.teachers.openai.retry import Fault
from easydistill.teachers.openai.routing import Endpoint, Router
from easydistill.teachers.sizes import Size, TokenEstimator


@dataclass(frozen=True)
class Ticket:
    """A request in flight."""

    endpoint: Endpoint
    number: int
    """The round of the endpoint's window that it belongs to."""
    size: Size


class Dispatcher:
    """Asked by the workers of one `generate` before each request, and informed of its outcome.

    Args:
        is_over: whether no new request may start.
        broke: called with an error message when the budget has no room, once nothing is in flight.
    """

    def __init__(
        self,
        router: Router,
        limits: RateLimits,
        estimator: TokenEstimator,
        ledger: Ledger,
        clock: Callable[[], float],
        is_over: Callable[[], bool],
        broke: Callable[[str], None],
    ) -> None:
        self._router, self._limits, self._estimator, self._ledger = router, limits, estimator, ledger
        self._clock, self._is_over, self._broke = clock, is_over, broke
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Make the first in line check again."""
        self._changed.set()

    async def start(self, size: Size, avoid: Endpoint | None, *, alone: bool = False) -> Ticket | None:
        """Wait for room, if `alone` for a server with nothing else in hand; None where the run is over before that."""
        async with self._turn:
            while not self._is_over():
                self._changed.clear()
                found = self._look(size, avoid, alone=alone)
                if isinstance(found, Ticket):
                    return found
                try:
                    async with asyncio.timeout(None if found == math.inf else found):
                        await self._changed.wait()
                except TimeoutError:
                    continue
        return None

    def _look(self, size: Size, avoid: Endpoint | None, *, alone: bool) -> Ticket | float:
        """A ticket, or the seconds after which to check again."""
        now = self._clock()
        if not self._ledger.has_room(size):
            if self._router.pending == 0:
                self._broke(self._ledger.exhausted(size))
                return 0.0
            return math.inf
        wait = self._limits.delay(size.expected, now)
        if wait > 0:
            return wait
        endpoint = self._router.choose(now, avoid, alone=alone)
        if not isinstance(endpoint, Endpoint):
            return endpoint
        self._limits.start(size.expected, now)
        self._ledger.reserve(size)
        return Ticket(endpoint, endpoint.started(now, alone=alone), size)

    def answered(self, ticket: Ticket, answer: Completion) -> None:
        now, used = self._clock(), answer.prompt_tokens + answer.completion_tokens
        ticket.endpoint.answered(ticket.number, answer.seconds, answer.completion_tokens)
        self._ledger.add(answer, ticket.size)
        if is_counted(answer):
            self._estimator.learn(ticket.size, answer.prompt_tokens, answer.completion_tokens)
            self._limits.correct(ticket.size.expected, used, now)
        self._end(ticket)

    def faulted(self, ticket: Ticket, fault: Fault) -> None:
        now = self._clock()
        ticket.endpoint.faulted(ticket.number, fault, now)
        if fault.overload or fault.reason == "connection":
            # Nothing was generated; after other faults that is unknown.
            self._limits.correct(ticket.size.expected, 0, now)
        self._end(ticket)

    def dropped(self, ticket: Ticket) -> None:
        """The request ended in a way that says nothing about the server."""
        ticket.endpoint.dropped(ticket.number)
        self._end(ticket)

    def _end(self, ticket: Ticket) -> None:
        self._ledger.release(ticket.size)
        self.wake()
