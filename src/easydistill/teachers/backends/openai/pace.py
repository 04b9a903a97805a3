"""How fast one server may be asked: not before the moment it named, and about as fast as it was seen to take requests.

There is no pace until the server refuses more than a quarter of what is sent. Then requests start as fast as it took
them. From there on the pace rises while next to nothing is refused, stays while a few are, eases while some are, and
falls again where many are. It eases only so far, since a server may refuse for reasons that have nothing to do with
speed.

Pure: every method takes the time, in seconds of any steady clock.
"""

from __future__ import annotations

import math

INTERVAL_SECONDS = 1.0
LEAST_SECONDS = 0.5
"""How soon many refusals are acted upon."""
MANY = 0.25
SOME = 0.1
FEW = 0.05
AT_LEAST = 8
"""Fewer refusals than this are no sign of anything."""
ENOUGH = 20
"""Starts to judge by; with fewer an interval goes on for up to `LONGEST_SECONDS`."""
LONGEST_SECONDS = 10.0
GROWTH = 1.05
FAST_GROWTH = 1.5
"""While the pace is well below one that the server kept up with."""
FORGET_SLOWLY = 0.99
"""The same for some."""
EASE = 0.97
"""Where some are refused: the pace eases to what the server was known to keep up with, no lower."""
LEAST_RATE = 1.0
"""Starts a second that are always tried, but for the server's own wish to wait."""
FORGET = 0.9
"""What is left, each time that many are refused, of the rate that the server was known to keep up with."""


class Pace:
    """The moment from which on the next request may start.

    Args:
        adaptive: False leaves only what the server asks for by Retry-After.
    """

    def __init__(self, adaptive: bool = True) -> None:
        self._adaptive = adaptive
        self.rate = math.inf
        """Starts a second."""
        self._known = 0.0
        self._held_until = self._next = self._begin = -math.inf
        self._started = self._refused = 0

    def delay(self, now: float) -> float:
        """Seconds until the next request may start."""
        return max(0.0, self._next - now, self._held_until - now)

    def started(self, now: float) -> None:
        self._decide(now)
        gap = 1 / self.rate
        # A start that comes late by less than a gap does not put off the next one.
        self._next = max(self._next, now - gap) + gap
        self._started += 1

    def refused(self, now: float, retry_after: float | None) -> None:
        """The server takes no more for now; where it says for how long, all of its requests wait."""
        if retry_after is not None:
            self._held_until = max(self._held_until, now + retry_after)
        self._refused += 1
        self._decide(now)

    def _decide(self, now: float) -> None:
        """Move the pace, once there is enough to tell."""
        elapsed = now - self._begin
        if not self._adaptive or not self._started:
            self._begin = max(self._begin, now)
            return
        share = min(1.0, self._refused / self._started)
        many = share > MANY and self._refused >= AT_LEAST
        wait = INTERVAL_SECONDS if self._started >= ENOUGH else LONGEST_SECONDS
        if elapsed < (LEAST_SECONDS if many else wait):
            return
        taken = (self._started - self._refused) / elapsed
        self._known = max(self._known, taken)
        if many:
            self._known *= FORGET
            self.rate = max(LEAST_RATE, min(self.rate, taken))
            self._next = max(self._next, now + 1 / self.rate)
        elif share > SOME:
            self._known *= FORGET_SLOWLY
            self.rate = min(self.rate, max(self._known, EASE * self.rate))
        elif share <= FEW and self._started >= 0.8 * self.rate * elapsed:
            self.rate *= FAST_GROWTH if self.rate * FAST_GROWTH < self._known else GROWTH
        self._begin, self._started, self._refused = now, 0, 0
