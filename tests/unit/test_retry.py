"""What a fault means, and how long to wait after it."""

from __future__ import annotations

import email.utils
import random

import pytest

from easydistill.teachers.retry import Fault, Verdict, from_error_object, from_status, pause, retry_after

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("status", "text", "reason", "verdict"),
    [
        (429, "slow down", "rate_limit", Verdict.RETRY),
        (429, '{"error": {"code": "insufficient_quota"}}', "quota", Verdict.QUOTA),
        (429, "You exceeded your current quota, please check your plan", "quota", Verdict.QUOTA),
        (402, "Insufficient Balance", "quota", Verdict.QUOTA),
        (402, "pay", "quota", Verdict.QUOTA),
        (403, "billing hard limit", "quota", Verdict.QUOTA),
        (403, "forbidden", "auth", Verdict.FATAL),
        (401, "who are you", "auth", Verdict.FATAL),
        (404, "The model `x` does not exist", "model", Verdict.FATAL),
        (404, "nothing here", "http_404", Verdict.REJECT),
        (400, "too long", "http_400", Verdict.REJECT),
        (422, "no", "http_422", Verdict.REJECT),
        (408, "", "http_408", Verdict.RETRY),
        (409, "", "http_409", Verdict.RETRY),
        (500, "", "server_error", Verdict.RETRY),
        (529, "overloaded", "server_error", Verdict.RETRY),
    ],
)
def test_status(status: int, text: str, reason: str, verdict: Verdict) -> None:
    fault = from_status(status, text, {}, NOW)
    assert (fault.reason, fault.verdict) == (reason, verdict)
    assert str(status) in fault.detail


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        ({"message": "busy", "code": 503}, Verdict.RETRY),
        ({"message": "busy", "code": "429"}, Verdict.RETRY),
        ({"message": "x", "code": "rate_limit_exceeded"}, Verdict.RETRY),
        ({"message": "x", "type": "insufficient_quota"}, Verdict.QUOTA),
        ({"message": "x", "code": 400}, Verdict.REJECT),
        ("something", Verdict.RETRY),
    ],
)
def test_error_objects(error: object, verdict: Verdict) -> None:
    assert from_error_object(error, NOW).verdict == verdict


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": email.utils.formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"retry-after": email.utils.formatdate(NOW - 30, usegmt=True)}, 0.0),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "soon"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after(headers, NOW) == expected


def test_the_servers_wish_is_a_minimum() -> None:
    fault = Fault("rate_limit", "", Verdict.RETRY, retry_after=100.0)
    waits = [pause(1, fault, 1.0, random.Random(n)) for n in range(200)]
    assert all(wait is not None and 100.0 <= wait <= 110.0 for wait in waits)
    assert len(set(waits)) > 100
    assert pause(1, Fault("rate_limit", "", Verdict.RETRY, retry_after=86_400.0), 1.0, random.Random(0)) is None


def test_back_off_grows_up_to_its_limit_with_full_jitter() -> None:
    fault = Fault("server_error", "", Verdict.RETRY)
    longest = [max(pause(attempt, fault, 6.0, random.Random(n)) or 0 for n in range(300)) for attempt in range(1, 9)]
    assert longest == sorted(longest)
    assert longest[0] <= 0.5
    assert 5.5 < longest[-1] <= 6.0
    assert min(pause(8, fault, 6.0, random.Random(n)) or 0 for n in range(300)) < 0.5
