"""How faults are classified, and how long to wait after them."""

from __future__ import annotations

import email.utils
import json
import random

import pytest

from easydistill.teachers.openai.retry import (
    Fault,
    Verdict,
    from_error_object,
    from_status,
    pause,
    retry_after,
)

NOW = 1_800_000_000.0
RATE_WITH_HINT = "Rate limit reached for requests. Limit: 3 / min. Add a payment method at https://platform.openai.com/account/billing."
PLAN_AND_BILLING = "You exceeded your current quota, please check your plan and billing details."


def body(message: str, code: object = None, kind: str | None = None) -> str:
    return json.dumps({"error": {"message": message, "type": kind, "code": code}})


@pytest.mark.parametrize(
    ("status", "text", "reason", "verdict"),
    [
        (429, "slow down", "rate_limit", Verdict.RETRY),
        (429, "", "rate_limit", Verdict.RETRY),
        (429, body(RATE_WITH_HINT, "rate_limit_exceeded", "requests"), "rate_limit", Verdict.RETRY),
        (429, RATE_WITH_HINT, "rate_limit", Verdict.RETRY),
        (
            429,
            body("Allocated quota exceeded, please increase your quota limit.", "insufficient_quota"),
            "rate_limit",
            Verdict.RETRY,
        ),
        (429, f"[{body(PLAN_AND_BILLING + ' Please retry in 34.07s.', 429)}]", "rate_limit", Verdict.RETRY),
        (429, body("Free allocated quota exceeded.", "insufficient_quota"), "quota", Verdict.QUOTA),
        (429, body(PLAN_AND_BILLING, "insufficient_quota", "insufficient_quota"), "quota", Verdict.QUOTA),
        (429, body("x", "credit_balance_exhausted", "insufficient_quota"), "quota", Verdict.QUOTA),
        (429, body("x", "billing_hard_limit_reached"), "quota", Verdict.QUOTA),
        (429, '{"error": {"code": "insufficient_quota"}}', "quota", Verdict.QUOTA),
        (429, '{"code": "insufficient_quota", "message": "flat"}', "quota", Verdict.QUOTA),
        (429, f"[{body(PLAN_AND_BILLING, 429)}]", "quota", Verdict.QUOTA),
        (429, "You exceeded your current quota, please check your plan", "quota", Verdict.QUOTA),
        (402, "Insufficient Balance", "quota", Verdict.QUOTA),
        (402, "pay", "quota", Verdict.QUOTA),
        (403, "billing hard limit", "quota", Verdict.QUOTA),
        (403, body("Sorry, your account balance is insufficient", 30001), "quota", Verdict.QUOTA),
        (
            400,
            body("Access denied, please make sure your account is in good standing.", "Arrearage"),
            "quota",
            Verdict.QUOTA,
        ),
        (403, "forbidden", "auth", Verdict.FATAL),
        (403, body("your input was flagged by moderation", 403), "http_403", Verdict.REJECT),
        (401, "who are you", "auth", Verdict.FATAL),
        (404, "The model `x` does not exist", "model", Verdict.FATAL),
        (404, body('model "x" not found, try pulling it first'), "model", Verdict.FATAL),
        (404, body("x", "model_not_found"), "model", Verdict.FATAL),
        (404, "nothing here", "http_404", Verdict.REJECT),
        (404, '{"detail": "Not Found"}', "http_404", Verdict.REJECT),
        (400, "too long", "http_400", Verdict.REJECT),
        (400, "billing, insufficient_quota and Insufficient Balance, said the prompt", "http_400", Verdict.REJECT),
        (413, "", "http_413", Verdict.REJECT),
        (422, "no", "http_422", Verdict.REJECT),
        (408, "", "timeout", Verdict.RETRY),
        (409, "", "server_error", Verdict.RETRY),
        (425, "", "server_error", Verdict.RETRY),
        (500, "", "server_error", Verdict.RETRY),
        (502, "<html>", "server_error", Verdict.RETRY),
        (529, "overloaded", "server_error", Verdict.RETRY),
        (500, "[" * 100_000, "server_error", Verdict.RETRY),
    ],
)
def test_status(status: int, text: str, reason: str, verdict: Verdict) -> None:
    fault = from_status(status, text, {}, NOW)
    assert (fault.reason, fault.verdict) == (reason, verdict)
    assert str(status) in fault.detail


def test_texts_are_not_cut_so_that_secrets_are_found_in_them() -> None:
    text = "x" * 50_000 + "the end"
    fault = from_status(400, text, {}, NOW)
    assert fault.detail.endswith("the end")
    assert fault.raw == text
    assert from_error_object({"message": text}, NOW).detail.count("the end") == 1


@pytest.mark.parametrize(
    ("error", "reason", "verdict"),
    [
        ({"message": "busy", "code": 503}, "server_error", Verdict.RETRY),
        ({"message": "busy", "code": "429"}, "rate_limit", Verdict.RETRY),
        ({"message": "x", "code": "rate_limit_exceeded"}, "rate_limit", Verdict.RETRY),
        ({"message": "x", "type": "insufficient_quota"}, "quota", Verdict.QUOTA),
        ({"message": PLAN_AND_BILLING}, "quota", Verdict.QUOTA),
        ({"message": "x", "code": 400}, "http_400", Verdict.REJECT),
        ({"message": "x", "type": "BadRequestError", "code": 400}, "http_400", Verdict.REJECT),
        ({"message": "x", "code": "context_length_exceeded"}, "http_400", Verdict.REJECT),
        ({"message": "x", "type": "invalid_request_error", "code": "invalid_api_key"}, "auth", Verdict.FATAL),
        ({"message": "x", "type": "invalid_request_error", "code": "model_not_found"}, "model", Verdict.FATAL),
        ({"message": "x", "code": 50505}, "server_error", Verdict.RETRY),
        ({"message": "x", "code": "²"}, "server_error", Verdict.RETRY),
        ({"message": None, "code": None, "type": None}, "server_error", Verdict.RETRY),
        ("something", "server_error", Verdict.RETRY),
        (["something"], "server_error", Verdict.RETRY),
        (7, "server_error", Verdict.RETRY),
    ],
)
def test_error_objects(error: object, reason: str, verdict: Verdict) -> None:
    fault = from_error_object(error, NOW)
    assert (fault.reason, fault.verdict) == (reason, verdict)


def at(seconds: float) -> str:
    return email.utils.formatdate(NOW + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": at(30)}, 30.0),
        ({"retry-after": at(30).replace("GMT", "-0000")}, 30.0),
        ({"retry-after": at(-30)}, 0.0),
        ({"retry-after": at(3630), "date": at(3600)}, 30.0),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after(headers, NOW) == expected


@pytest.mark.parametrize("status", [429, 503])
def test_passing_faults_carry_the_requested_pause(status: int) -> None:
    assert from_status(status, "", {"retry-after": "7"}, NOW).retry_after == 7.0


def test_the_requested_pause_is_a_minimum() -> None:
    fault = Fault("rate_limit", "", Verdict.RETRY, retry_after=100.0)
    waits = [pause(1, fault, 1.0, random.Random(n)) for n in range(200)]
    assert all(wait is not None and 100.0 <= wait <= 110.0 for wait in waits)
    assert len(set(waits)) > 100


@pytest.mark.parametrize(("wish", "waits"), [(600.0, True), (600.1, False), (float("inf"), False)])
def test_an_absurd_pause_is_not_waited_for(wish: float, waits: bool) -> None:
    fault = Fault("rate_limit", "", Verdict.RETRY, retry_after=wish)
    assert (pause(1, fault, 1.0, random.Random(0)) is not None) == waits


def test_back_off_grows_up_to_its_limit_with_full_jitter() -> None:
    fault = Fault("server_error", "", Verdict.RETRY)
    longest = [max(pause(attempt, fault, 6.0, random.Random(n)) or 0 for n in range(300)) for attempt in range(1, 9)]
    assert longest == sorted(longest)
    assert 0.45 < longest[0] <= 0.5
    assert 0.9 < longest[1] <= 1.0
    assert 5.5 < longest[-1] <= 6.0
    assert min(pause(8, fault, 6.0, random.Random(n)) or 0 for n in range(300)) < 0.5
    assert pause(100_000, fault, 6.0, random.Random(0)) == pause(50, fault, 6.0, random.Random(0))
