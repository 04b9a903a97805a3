"""A circuit breaker: ends a run in which most requests fail, before all rows have been tried in vain.

It counts answers, and requests that failed after all their attempts. A request refused for its content counts as
neither, since other rows may be fine.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

WINDOW = 200
"""Number of recent outcomes considered."""
SHARE = 0.5
FIRST = 20
"""Failures that end a run without a single answer."""

_HINTS = {
    "rate_limit": "lower inference.max_concurrency, or set inference.requests_per_minute or tokens_per_minute",
    "timeout": "raise inference.timeout, or lower inference.max_concurrency",
    "connection": "check inference.base_url, and that the server runs",
    "server_error": "check the server's own log",
    "worker_died": "check the server's own log",
}


@dataclass(frozen=True)
class Trip:
    """Why the run ends."""

    failed: int
    of: int
    """Recent outcomes."""
    reason: str
    """The most frequent reason."""
    share: float
    """Its share among the failures."""
    detail: str
    """An example."""

    def words(self) -> str:
        hint = _HINTS.get(self.reason, "check what answers at inference.base_url")
        return (
            f"{self.failed} of the last {self.of} requests failed for good, "
            f"{self.share:.0%} of them with {self.reason}: {self.detail}\n"
            f"    → {hint}; the same command then goes on, and asks for nothing it has already"
        )


class Breaker:
    """Watches outcomes; `add_failure` returns a `Trip` once there are too many failures."""

    def __init__(self) -> None:
        self._recent: deque[str | None] = deque(maxlen=WINDOW)
        self._answered = False
        self._details: dict[str, str] = {}

    def add_answer(self) -> None:
        self._answered = True
        self._recent.append(None)

    def add_failure(self, reason: str, detail: str) -> Trip | None:
        """A request failed after all its attempts, not because of its content."""
        self._recent.append(reason)
        self._details[reason] = detail
        reasons = Counter(item for item in self._recent if item is not None)
        failed = reasons.total()
        if failed < (SHARE * WINDOW if self._answered else FIRST):
            return None
        top, count = reasons.most_common(1)[0]
        return Trip(failed, len(self._recent), top, count / failed, self._details[top])
