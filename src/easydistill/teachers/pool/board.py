"""Who has which requests: units of work that are waiting, in hand, answered or given up.

A unit whose worker dies waits again, behind the others. One that was in hand at two deaths is suspected: it is asked
again with nothing beside it, and is given up if its worker dies once more, or if it was alone at the second death
already. So requests that cannot be answered end, and those that were only near a death are not lost with them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from easydistill.contracts.teacher import GenerationRequest

MOST_DEATHS = 2
"""Workers that a unit may kill before it is suspected."""


@dataclass
class Unit:
    """Requests that are answered, recorded and lost together."""

    number: int
    requests: tuple[GenerationRequest, ...]
    deaths: int = 0
    """Workers that died while they had it."""

    @property
    def is_suspect(self) -> bool:
        return self.deaths >= MOST_DEATHS


class Board:
    """The units of one call.

    Args:
        most: units that a worker has in hand at once.
    """

    def __init__(self, units: Iterable[Unit], most: int) -> None:
        self._waiting = deque(units)
        self._suspects: deque[Unit] = deque()
        self._most = most
        self._in_hand: dict[int, dict[int, Unit]] = {}

    @property
    def waiting(self) -> int:
        """Units that no worker has."""
        return len(self._waiting) + len(self._suspects)

    @property
    def in_hand(self) -> int:
        """Units that workers have."""
        return sum(map(len, self._in_hand.values()))

    def has_any(self, worker: int) -> bool:
        """Whether a worker has a unit in hand."""
        return bool(self._in_hand.get(worker))

    def take(self, worker: int) -> Unit | None:
        """A unit for a worker to answer next; None if it should have no more, or there is none."""
        has = self._in_hand.setdefault(worker, {})
        if len(has) >= self._most or any(unit.is_suspect for unit in has.values()):
            return None
        if self._suspects and not has and not self._waiting:
            unit = self._suspects.popleft()
        elif self._waiting:
            unit = self._waiting.popleft()
        else:
            return None
        has[unit.number] = unit
        return unit

    def answered(self, worker: int, number: int) -> Unit:
        """Note that a worker has answered a unit."""
        return self._in_hand[worker].pop(number)

    def died(self, worker: int, *, was_ready: bool = True) -> list[Unit]:
        """Note that a worker has died; the units that are given up.

        Args:
            was_ready: whether it had loaded the model; if not, no unit is to blame.
        """
        lost = list(self._in_hand.pop(worker, {}).values())
        given_up: list[Unit] = []
        if not was_ready:
            (self._suspects if lost and lost[0].is_suspect else self._waiting).extend(lost)
            return []
        for unit in lost:
            unit.deaths += 1
            if not unit.is_suspect:
                self._waiting.append(unit)
            elif len(lost) > 1:
                self._suspects.append(unit)
            else:
                given_up.append(unit)
        return given_up
