"""How much one server is asked at once: more while that speeds it up, less when it refuses or slows down.

The load, a single number, follows additive increase and multiplicative decrease. Once a round (as many requests as may
be in flight at once) it
  - shrinks by the refused share, at most by half, if more than a quarter of the round was refused (429, 503);
  - shrinks a little if a token takes twice as long as it did at best, and longer than L^0.75 times as long, where L is
    the load's growth since then: a higher load then brings hardly more (less than L^0.25 times the tokens);
  - otherwise grows if it was used up: by one, or by a twentieth if it limited the rate of starts.
Until the first sign of trouble, and later up to a load that the server is known to handle, it grows by one for every
answer. Some refusals are tolerated because servers refuse now and then at any load, and because a server that counts
requests by the minute answers as many whether or not some are refused.

The load limits the requests in flight. From the first round with too many refusals on it also limits the rate of starts
to load / seconds of an answer, which by Little's law is the rate of answers with that many requests in flight. This is
for servers that refuse at once, and would otherwise be asked hundreds of times while they work on one answer, and for
servers that handle less than one request at a time, where the load is below one.

Pure: methods take the time, in seconds of any steady clock.
"""

from __future__ import annotations

import math

START = 32
TOLERATED = 0.25
LEAST = 4
"""Requests always allowed in flight; a lower load only spreads their starts."""
LONGEST_GAP = 1.0
"""Longest interval between starts, in seconds, unless an answer takes longer or the server asks for a longer wait."""
LEAST_ROUND = 16
MOST_SHRINK = 0.5
SLOW_SHRINK = 0.9
GROWTH = 0.05
FORGET = 0.85
"""Factor for the known load in each round with too many refusals."""
SLOWER = 2.0
"""Ratio of seconds per token to the best known from which a server counts as slowed down."""
PAYS = 0.75
"""Seconds per token may grow with the load's growth to this power: batching slows each request and speeds up all."""
FIRST_SECONDS = 0.5
"""Assumed seconds of an answer before the first one."""
_REMEMBERED = 32
"""Number of answers in the moving average of their seconds."""
_SMOOTH = 0.3
_RELEARN = 1.1
"""Growth of the best known seconds per token, each round, once the load cannot shrink: the server has changed."""


class Window:
    """Limits the requests in flight and the rate of their starts, by the outcomes of earlier ones.

    Args:
        ceiling: the most requests in flight.
        adaptive: False always allows `ceiling` requests in flight; starts then wait only for the server's Retry-After.
    """

    def __init__(self, ceiling: int, adaptive: bool = True) -> None:
        self._ceiling = ceiling
        self._floor = float(min(LEAST, ceiling))
        self._adaptive = adaptive
        self._load = float(min(START, ceiling) if adaptive else ceiling)
        self._known = math.inf
        """Below it the load grows by one for every answer."""
        self._round = 0
        self._known_answers = 0
        self._seconds_each = FIRST_SECONDS
        self._paced = False
        self._next = self._held_until = -math.inf
        self._cost: float | None = None
        self._best_cost, self._best_load = 0.0, 1.0
        self._begin()

    @property
    def limit(self) -> int:
        """Requests that may be in flight at once."""
        return int(max(self._load, self._floor))

    def delay(self, now: float) -> float:
        """Seconds until the next request may start."""
        return max(0.0, self._held_until - now, self._next - now)

    def started(self, now: float) -> int:
        """A request starts; returns its round, which is passed on with its outcome."""
        self._started += 1
        if self._paced:
            gap = self._seconds_each / self._load
            # Less than a gap late: only the rate held this start back. Its lateness does not delay the next one.
            self._on_time += now < self._next + gap
            self._next = max(self._next, now - gap) + gap
        return self._round

    def answered(self, number: int, seconds: float, tokens: int, pending: int) -> None:
        """An answer of `tokens` (0: unknown) after `seconds`; `pending` requests are in flight, itself included."""
        self._known_answers = min(self._known_answers + 1, _REMEMBERED)
        self._seconds_each += (seconds - self._seconds_each) / self._known_answers
        full = pending >= self.limit
        if number == self._round:
            self._answers += 1
            self._full += full
            self._seconds += seconds
            self._units += tokens or 1
        growing = self._load < self._known and (full or self._paced) and self._refused_share() <= TOLERATED
        if self._adaptive and growing:
            self._load = min(self._load + min(1.0, self._load), self._ceiling)
        self._end(number)

    def refused(self, number: int) -> None:
        """The server was overloaded."""
        if number == self._round:
            self._refused += 1
        self._end(number)

    def failed(self, number: int) -> None:
        """The request failed for a reason unrelated to load."""
        self._end(number)

    def hold(self, until: float) -> None:
        """The server asked to wait: no request starts before `until`."""
        self._held_until = max(self._held_until, until)

    def _begin(self) -> None:
        self._round += 1
        self._size = max(LEAST_ROUND, self.limit)
        self._started = self._ended = self._refused = self._answers = self._full = self._on_time = 0
        self._seconds = self._units = 0.0

    def _refused_share(self) -> float:
        return self._refused / self._started if self._started else 0.0

    def _end(self, number: int) -> None:
        if number != self._round:
            return
        self._ended += 1
        if self._adaptive and self._ended >= self._size:
            self._decide()
            self._begin()

    def _decide(self) -> None:
        share = self._refused_share()
        reached = 2 * self._full >= self._answers > 0
        if share > TOLERATED:
            known = FORGET * self._known if self._known < math.inf else 0.0
            least = min(1.0, self._seconds_each / LONGEST_GAP)
            self._load = max(least, self._load * max(MOST_SHRINK, 1 - share))
            self._known = max(known, self._load)
            self._paced = True
        elif reached and self._slowed(self._seconds / self._units):
            self._load = max(min(self._load, self._floor), self._load * SLOW_SHRINK)
            self._known = self._load
        elif self._load >= self._known:
            if 2 * self._on_time >= self._started:
                self._load += GROWTH * self._load
            elif reached:
                self._load += min(1.0, GROWTH * self._load)
            self._load = min(self._load, self._ceiling)

    def _slowed(self, cost: float) -> bool:
        """Whether `cost`, in seconds per token, shows that a higher load brings hardly more."""
        if self._cost is None:
            self._cost = cost
            self._best_cost, self._best_load = cost, self._load
        self._cost += _SMOOTH * (cost - self._cost)
        if self._cost < self._best_cost:
            self._best_cost, self._best_load = self._cost, self._load
        growth = max(1.0, self._load / self._best_load)
        if self._cost <= self._best_cost * max(SLOWER, growth**PAYS):
            return False
        if self._load <= self._floor:
            self._best_cost, self._best_load = self._best_cost * _RELEARN, self._load
        return True
