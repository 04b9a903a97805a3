"""Ends a run in which most requests fail for good, while the rest of the rows is still unspent.

Counted are answers and requests whose attempts were all in vain. A request that the server refuses for what is in it
counts as neither: other rows may well be fine.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

WINDOW = 200
"""Outcomes that count as recent."""
SHARE = 0.5
FIRST = 20
"""Failures that end a run which has not had one answer."""

_MENDS = {
    "rate_limit": "lower inference.max_concurrency, or set inference.requests_per_minute or tokens_per_minute",
    "timeout": "raise inference.timeout, or lower inference.max_concurrency",
    "connection": "check inference.base_url, and that the server runs",
    "server_error": "check the server's own log",
}


@dataclass(frozen=True)
class Trip:
    """Why the run ends."""

    failed: int
    of: int
    """Recent outcomes."""
    reason: str
    """The most frequent one."""
    share: float
    """Its share among the failures."""
    detail: str
    """An example."""

    def words(self) -> str:
        mend = _MENDS.get(self.reason, "check what answers at inference.base_url")
        return (
            f"{self.failed} of the last {self.of} requests failed for good, "
            f"{self.share:.0%} of them with {self.reason}: {self.detail}\n"
            f"    → {mend}; the same command then goes on, and asks for nothing it has already"
        )


class Breaker:
    """Watches outcomes; `add_failure` says when enough is enough."""

    def __init__(self) -> None:
        self._recent: deque[str | None] = deque(maxlen=WINDOW)
        self._answered = False
        self._details: dict[str, str] = {}

    def add_answer(self) -> None:
        self._answered = True
        self._recent.append(None)

    def add_failure(self, reason: str, detail: str) -> Trip | None:
        """A request failed for good, through no fault of its content."""
        self._recent.append(reason)
        self._details[reason] = detail
        reasons = Counter(item for item in self._recent if item is not None)
        failed = reasons.total()
        if failed < (SHARE * WINDOW if self._answered else FIRST):
            return None
        top, count = reasons.most_common(1)[0]
        return Trip(failed, len(self._recent), top, count / failed, self._details[top])
