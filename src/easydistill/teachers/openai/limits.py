"""The user's rate limits: requests and tokens per minute, spread evenly.

Pure: every method takes the time, in seconds of any steady clock.
"""

from __future__ import annotations

BURST_SECONDS = 0.25
"""The burst allowed: the allowance of this much time."""


class TokenBucket:
    """`per_minute` units a minute; at most `BURST_SECONDS`' worth at once, or one unit if that is larger."""

    def __init__(self, per_minute: float) -> None:
        self._rate = per_minute / 60
        self._capacity = max(1.0, BURST_SECONDS * self._rate)
        self._level = min(1.0, self._capacity)
        self._at: float | None = None

    def delay(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken. More than fits is taken from a full bucket, on credit."""
        missing = min(amount, self._capacity) - self._filled(now)
        return max(0.0, missing / self._rate)

    def take(self, amount: float, now: float) -> None:
        """Take, below zero if need be. A negative amount gives back."""
        self._level = min(self._capacity, self._filled(now) - amount)
        self._at = now

    def _filled(self, now: float) -> float:
        if self._at is None:
            self._at = now
        elapsed = max(0.0, now - self._at)
        # Slightly more than counted, so that rounding does not cause waits of 1e-17 seconds.
        return min(self._capacity, self._level + elapsed * self._rate + 1e-9)


class RateLimits:
    """Both limits; either may be None."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._requests = None if requests_per_minute is None else TokenBucket(requests_per_minute)
        self._tokens = None if tokens_per_minute is None else TokenBucket(tokens_per_minute)

    def delay(self, tokens: int, now: float) -> float:
        """Seconds until a request of about `tokens` may start."""
        waits = [self._requests.delay(1, now)] if self._requests else []
        waits += [self._tokens.delay(tokens, now)] if self._tokens else []
        return max(waits, default=0.0)

    def start(self, tokens: int, now: float) -> None:
        if self._requests:
            self._requests.take(1, now)
        if self._tokens:
            self._tokens.take(tokens, now)

    def correct(self, estimated: int, used: int, now: float) -> None:
        """Correct a request's estimate by the tokens that it used."""
        if self._tokens:
            self._tokens.take(used - estimated, now)
