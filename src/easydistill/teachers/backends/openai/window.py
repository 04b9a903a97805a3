"""How many requests one server should have under way: as many as speed it up, fewer when it refuses or slows down.

Additive increase, multiplicative decrease, decided once a round (as many requests as may be under way at once):
  - more than a quarter of the round was refused (429, 503): shrink by the refused share, at most by half;
  - a token takes twice as long as it did at best, and longer than L^0.75 times as long, L being by how much the limit
    has grown since: more at once brings hardly more (below L^0.25 times the tokens), so shrink a little;
  - otherwise, where the limit was reached: one more. Up to the first sign of trouble, one more for every answer.
A share is tolerated because servers refuse now and then at any load, and because a server that counts requests by the
minute answers as many whether or not some are refused.

Pure: no clock.
"""

from __future__ import annotations

START = 32
TOLERATED = 0.25
LEAST = 4
"""Below this a limit tells nothing that the pace does not."""
LEAST_ROUND = 16
MOST_SHRINK = 0.5
SLOW_SHRINK = 0.9
SLOWER = 2.0
"""Seconds a token, relative to the best known, from which on a server counts as slowed down."""
PAYS = 0.75
"""Seconds a token may grow with the limit's growth to this power: batches make each slower and all faster."""
_SMOOTH = 0.3
_RELEARN = 1.1
"""Growth per round of the best known, once the limit cannot shrink any more: the server has changed."""


class Window:
    """A limit on requests under way, moved by what comes of them.

    Args:
        ceiling: the limit never exceeds it.
        adaptive: False fixes the limit at the ceiling.
    """

    def __init__(self, ceiling: int, adaptive: bool = True) -> None:
        self._ceiling = ceiling
        self._floor = float(min(LEAST, ceiling))
        self.adaptive = adaptive
        self._limit = float(min(START, ceiling) if adaptive else ceiling)
        self._doubling = True
        self._round = 0
        self._cost: float | None = None
        self._best_cost, self._best_limit = 0.0, 1.0
        self._begin()

    @property
    def limit(self) -> int:
        return int(self._limit)

    def _begin(self) -> None:
        self._round += 1
        self._size = max(LEAST_ROUND, self.limit)
        self._started = self._ended = self._refused = self._answers = self._full = 0
        self._seconds = self._units = 0.0

    def started(self) -> int:
        """A request starts; returns the round it belongs to, to be given back with what comes of it."""
        self._started += 1
        return self._round

    def answered(self, number: int, seconds: float, tokens: int, pending: int) -> None:
        """An answer of `tokens` (0: unknown) after `seconds`, with `pending` requests under way, itself included."""
        full = pending >= self.limit
        if number == self._round:
            self._answers += 1
            self._full += full
            self._seconds += seconds
            self._units += tokens or 1
        if self.adaptive and self._doubling and full and self._refused_share() <= TOLERATED:
            self._limit = min(self._limit + 1, self._ceiling)
        self._end(number)

    def refused(self, number: int) -> None:
        """The server was too busy."""
        if number == self._round:
            self._refused += 1
        self._end(number)

    def failed(self, number: int) -> None:
        """Something else went wrong, which says nothing about load."""
        self._end(number)

    def _refused_share(self) -> float:
        return self._refused / self._started if self._started else 0.0

    def _end(self, number: int) -> None:
        if number != self._round:
            return
        self._ended += 1
        if self.adaptive and self._ended >= self._size:
            self._decide()
            self._begin()

    def _decide(self) -> None:
        share = self._refused_share()
        full = 2 * self._full >= self._answers > 0
        if share > TOLERATED:
            self._limit = max(self._floor, self._limit * max(MOST_SHRINK, 1 - share))
            self._doubling = False
        elif full and self._slowed(self._seconds / self._units):
            self._limit = max(self._floor, self._limit * SLOW_SHRINK)
            self._doubling = False
        elif full and not self._doubling:
            self._limit = min(self._limit + 1, self._ceiling)

    def _slowed(self, cost: float) -> bool:
        """Whether `cost`, in seconds a token, means that more at once is not more."""
        if self._cost is None:
            self._cost = cost
            self._best_cost, self._best_limit = cost, self._limit
        self._cost += _SMOOTH * (cost - self._cost)
        if self._cost < self._best_cost:
            self._best_cost, self._best_limit = self._cost, self._limit
        growth = max(1.0, self._limit / self._best_limit)
        if self._cost <= self._best_cost * max(SLOWER, growth**PAYS):
            return False
        if self._limit <= self._floor:
            self._best_cost, self._best_limit = self._best_cost * _RELEARN, self._limit
        return True
