"""How to proceed after a failed request: retry it, give the row up, or stop the run.

Pure: no clock and no network; the time is an argument. Texts are kept whole, so that secrets can be hidden before
they are cut for display.
"""

from __future__ import annotations

import email.utils
import json
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from enum import Enum
from typing import Any

FIRST_WAIT = 0.5
LONGEST_RETRY_AFTER = 600.0
"""If a server asks for a longer pause, the row fails; a later run can ask for it again."""

_PASSING = {408: "timeout", 409: "server_error", 425: "server_error", 429: "rate_limit"}
_OVERLOAD = frozenset({429, 503, 529})

# No credit. Codes take precedence over phrases: OpenAI's texts on mere rate limits mention …/account/billing.
_QUOTA_CODES = frozenset(
    {
        "insufficient_quota",
        "quota_exceeded",
        "insufficient_user_quota",
        "insufficient_balance",
        "insufficient_credits",
        "credit_balance_exhausted",
        "billing_hard_limit_reached",
        "billing_not_active",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "arrearage",
    }
)
_RATE_CODES = frozenset({"rate_limit_exceeded", "rate_limit_error", "slow_down", "requests", "tokens"})
_QUOTA_PHRASES = (
    "insufficient_quota",
    "exceeded your current quota",
    "free allocated quota exceeded",
    "insufficient balance",
    "balance is insufficient",
    "balance is not enough",
    "insufficient credit",
    "billing hard limit",
    "billing is not active",
    "check your billing details",
)
_RATE_PHRASES = ("please retry in", "please try again in", "tokens per min", "requests per min")

_MODEL_CODES = frozenset({"model_not_found", "modelnotfound", "deploymentnotfound"})
_NO_MODEL = re.compile(r"\b(model|deployment)\b.{0,200}?\b(not found|(does )?not exist|unknown)\b|unknown model", re.S)
_DOES_NOT_EXIST = "does not exist"
_FLAGGED = ("moderation", "flagged", "content policy", "content_policy", "content_filter")
"""Words of a 403 that rejects the prompt rather than the key."""

# The status of error objects without a number. The first match counts: OpenAI also gives the type
# invalid_request_error to wrong keys and unknown models.
_CODE_STATUS = {
    **dict.fromkeys(("invalid_api_key", "authentication_error"), 401),
    **dict.fromkeys(("permission_error", "permission_denied"), 403),
    **dict.fromkeys(sorted(_MODEL_CODES), 404),
    **dict.fromkeys(sorted(_RATE_CODES | _QUOTA_CODES), 429),
    **dict.fromkeys(("context_length_exceeded", "invalid_request_error", "badrequesterror"), 400),
}


class Verdict(Enum):
    """The consequence of a fault."""

    RETRY = "retry"
    REJECT = "reject"
    """This row cannot succeed; others may."""
    QUOTA = "quota"
    """The account has no credit: stop."""
    FATAL = "fatal"
    """No row can succeed: stop."""


@dataclass(eq=False)
class Fault(Exception):
    """An attempt without an answer."""

    reason: str
    detail: str
    verdict: Verdict
    retry_after: float | None = None
    raw: str | None = None
    overload: bool = False
    """Whether the server reports overload: 429, 503, 529."""

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
    codes = _codes(text)
    lowered = text.lower()

    def fault(reason: str, verdict: Verdict, wait: float | None = None) -> Fault:
        return Fault(reason, f"HTTP {status}: {text}" if text else f"HTTP {status}", verdict, wait, raw=text)

    if _no_credit(status, codes, lowered):
        return fault("quota", Verdict.QUOTA)
    if status == 403 and any(word in lowered for word in _FLAGGED):
        return fault("http_403", Verdict.REJECT)
    if status in {401, 403}:
        return fault("auth", Verdict.FATAL)
    if status == 404 and (codes & _MODEL_CODES or _NO_MODEL.search(lowered) or _DOES_NOT_EXIST in lowered):
        return fault("model", Verdict.FATAL)
    if status in _PASSING or status >= 500:
        passing = fault(_PASSING.get(status, "server_error"), Verdict.RETRY, retry_after(headers, now))
        passing.overload = status in _OVERLOAD
        return passing
    return fault(f"http_{status}", Verdict.REJECT)


def from_error_object(error: Any, now: float) -> Fault:
    """The fault in an `{"error": …}` that came where an answer should be."""
    text = json.dumps({"error": error}, ensure_ascii=False)
    codes = _codes(text)
    status = next((int(code) for code in codes if re.fullmatch(r"[45][0-9][0-9]", code)), None)
    if status is None:
        status = next((number for code, number in _CODE_STATUS.items() if code in codes), None)
    if status is None and any(phrase in text.lower() for phrase in _QUOTA_PHRASES):
        status = 429
    if status is None:
        return Fault("server_error", text, Verdict.RETRY, raw=text)
    return from_status(status, text, {}, now)


def body_in(content: bytes) -> Any:
    """The JSON of an answer.

    Raises:
        Fault: it is broken (to be retried), or an error.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise Fault("garbage", "the body is not JSON", Verdict.RETRY) from None
    if isinstance(body, dict) and body.get("error"):
        raise from_error_object(body["error"], time.time())
    return body


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that the server asks to wait: `retry-after-ms`, or `retry-after` as seconds or as an HTTP date.

    A date is relative to the response's own `date` header, if it has one, so that clocks need not agree.
    """
    milliseconds, seconds = _number(headers.get("retry-after-ms")), _number(headers.get("retry-after"))
    if milliseconds is not None:
        return milliseconds / 1000
    if seconds is not None:
        return seconds
    then = _date(headers.get("retry-after"))
    if then is None:
        return None
    return max(0.0, then - (_date(headers.get("date")) or now))


def pause(attempt: int, fault: Fault, longest: float, generator: random.Random) -> float | None:
    """Seconds to wait before the next attempt, or None if there should be none.

    Exponential back-off with full jitter. The server's Retry-After is a minimum, spread by up to a tenth so that
    requests do not all return at once; a short one does not replace the back-off.

    Args:
        attempt: number of the attempt that failed, from 1.
        longest: longest back-off, in seconds.
    """
    least = 0.0
    if fault.retry_after is not None:
        if fault.retry_after > LONGEST_RETRY_AFTER:
            return None
        least = fault.retry_after * (1 + 0.1 * generator.random())
    return max(least, min(longest, FIRST_WAIT * 2.0 ** min(attempt - 1, 30)) * generator.random())


def _no_credit(status: int, codes: set[str], lowered: str) -> bool:
    if status == 402:
        return True
    if status not in {400, 403, 429}:
        return False
    if "allocated quota exceeded" in lowered and "free allocated" not in lowered:
        # DashScope's text for too many tokens a minute, sent with the code insufficient_quota.
        return False
    if any(phrase in lowered for phrase in _RATE_PHRASES):
        # Gemini uses "exceeded your current quota" for limits per minute.
        return False
    if status == 400:
        return "arrearage" in codes
    if codes & _QUOTA_CODES:
        return True
    return not codes & _RATE_CODES and any(phrase in lowered for phrase in _QUOTA_PHRASES)


def _codes(text: str) -> set[str]:
    """The lower-case `code`, `type` and `status` in an error body of any of the usual shapes."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return set()
    if isinstance(body, list) and body:
        body = body[0]
    found: set[str] = set()
    for item in (body, body.get("error") if isinstance(body, dict) else None):
        if isinstance(item, dict):
            found |= {str(item[name]).lower() for name in ("code", "type", "status") if name in item}
    return found


def _number(value: str | None) -> float | None:
    """A plain non-negative number; a negative one counts as 0."""
    try:
        number = float(value) if value is not None else None
    except ValueError:
        return None
    return None if number is None or number != number else max(0.0, number)


def _date(value: str | None) -> float | None:
    """An HTTP date in seconds since the epoch."""
    if value is None:
        return None
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
