"""What to do about a request that went wrong: try again, give the row up, or stop the run.

Pure: no clock, no network; what needs either takes it as an argument.
"""

from __future__ import annotations

import email.utils
import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

FIRST_WAIT = 0.5
LONGEST_RETRY_AFTER = 600.0
"""A server that asks for a longer pause will not serve this run; its rows fail and can be asked again later."""
PASSING_STATUS = frozenset({408, 409, 425, 429})
_QUOTA_WORDS = (
    "insufficient_quota",
    "quota_exceeded",
    "exceeded your current quota",
    "billing",
    "insufficient balance",
)
_MODEL_WORDS = ("model_not_found", "model not found", "does not exist", "no such model", "unknown model")


class Verdict(Enum):
    """What follows from a fault."""

    RETRY = "retry"
    REJECT = "reject"
    """This row cannot succeed; others can."""
    QUOTA = "quota"
    """The account has no credit: stop."""
    FATAL = "fatal"
    """No row can succeed: stop."""


@dataclass
class Fault(Exception):
    """One attempt that brought no answer."""

    reason: str
    detail: str
    verdict: Verdict
    retry_after: float | None = None
    raw: str | None = None

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def from_status(status: int, text: str, headers: Mapping[str, str], now: float) -> Fault:
    """The fault that an HTTP status with its body means.

    Args:
        status: HTTP status, or the code inside an error object that came with status 200.
        text: the body.
        headers: response headers, lower-case names.
        now: seconds since the epoch, for a Retry-After given as a date.
    """
    lowered = text.lower()
    short = " ".join(text.split())[:500]
    if status in {402, 403, 429} and any(word in lowered for word in _QUOTA_WORDS):
        return Fault("quota", f"HTTP {status}: {short}", Verdict.QUOTA, raw=text)
    if status == 402:
        return Fault("quota", f"HTTP 402: {short}", Verdict.QUOTA, raw=text)
    if status in {401, 403}:
        return Fault("auth", f"HTTP {status}: {short}", Verdict.FATAL, raw=text)
    if status == 404 and any(word in lowered for word in _MODEL_WORDS):
        return Fault("model", f"HTTP 404: {short}", Verdict.FATAL, raw=text)
    if status in PASSING_STATUS or status >= 500:
        reason = "rate_limit" if status == 429 else "server_error" if status >= 500 else f"http_{status}"
        wait = retry_after(headers, now)
        return Fault(reason, f"HTTP {status}: {short}", Verdict.RETRY, wait, raw=text)
    return Fault(f"http_{status}", f"HTTP {status}: {short}", Verdict.REJECT, raw=text)


def from_error_object(error: Any, now: float) -> Fault:
    """The fault in an `{"error": …}` that came where an answer should be."""
    message, code = str(error), None
    if isinstance(error, dict):
        message = str(error.get("message") or error)
        code = error.get("code") if error.get("code") is not None else error.get("type")
    text = f"{code} {message}"
    if str(code).isdigit():
        return from_status(int(str(code)), text, {}, now)
    if "rate_limit" in text.lower():
        return from_status(429, text, {}, now)
    if any(word in text.lower() for word in _QUOTA_WORDS):
        return from_status(429, text, {}, now)
    return Fault("server_error", message[:500], Verdict.RETRY, raw=text)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds the server asks to wait: `retry-after-ms`, or `retry-after` as seconds or as an HTTP date."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
    except ValueError:
        pass
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError):
        return None


def pause(attempt: int, fault: Fault, longest: float, generator: random.Random) -> float | None:
    """Seconds to wait before the next attempt, or None where waiting makes no sense.

    The server's wish counts as a minimum, spread by up to a tenth so that not all requests return at once; without
    one, exponential back-off with full jitter.

    Args:
        attempt: number of the attempt that failed, from 1.
        longest: longest pause of our own choice.
    """
    if fault.retry_after is not None:
        if fault.retry_after > LONGEST_RETRY_AFTER:
            return None
        return fault.retry_after * (1 + 0.1 * generator.random())
    return min(longest, FIRST_WAIT * 2 ** (attempt - 1)) * generator.random()
