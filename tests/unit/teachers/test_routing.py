"""Which server is asked, which feature is used, and when a run is given up."""

from __future__ import annotations

import math
from typing import Any

from easydistill.contracts.teacher import GenerationRequest, endpoint_name, request_key
from easydistill.teachers.openai.breaker import FIRST, WINDOW, Breaker
from easydistill.teachers.openai.features import Features, json_schema_format
from easydistill.teachers.openai.retry import Fault, Verdict, from_status
from easydistill.teachers.openai.routing import FAILURES, FIRST_REST, Endpoint, Router
from easydistill.teachers.openai.window import Window

BROKEN = Fault("connection", "", Verdict.RETRY)
BUSY = from_status(429, "", {"retry-after": "7"}, 0.0)


def router(count: int = 3, ceiling: int = 10) -> Router:
    return Router([Endpoint(f"http://{name}", Window(ceiling)) for name in "abcdef"[:count]])


def start(routes: Router, now: float = 0.0, avoid: Endpoint | None = None) -> tuple[Endpoint, int]:
    found = routes.choose(now, avoid)
    assert isinstance(found, Endpoint), found
    return found, found.started(now)


def test_the_least_pending_is_asked() -> None:
    routes = router()
    chosen = [start(routes)[0].url for _ in range(6)]
    assert sorted(chosen) == sorted(2 * ["http://a", "http://b", "http://c"])
    assert [endpoint.pending for endpoint in routes.endpoints] == [2, 2, 2]


def test_full_servers_wait_for_an_end() -> None:
    routes = router(1, ceiling=2)
    start(routes), start(routes)
    assert routes.choose(0.0) == math.inf


def test_a_failing_server_is_set_aside_and_tried_with_one_request() -> None:
    routes = router(2)
    bad, good = routes.endpoints
    for _ in range(FAILURES):
        bad.faulted(bad.started(0.0), BROKEN, 0.0)
    assert {start(routes)[0] for _ in range(5)} == {good}
    later = FIRST_REST + 0.1
    probe, number = start(routes, later)
    assert probe is bad
    assert start(routes, later)[0] is good
    bad.faulted(number, BROKEN, later)
    assert start(routes, later + FIRST_REST)[0] is good  # it rests for longer now
    probe, number = start(routes, later + 2 * FIRST_REST)
    assert probe is bad
    bad.answered(number, 1.0, 1)
    assert bad.is_well()


def test_with_no_server_that_works_all_are_asked() -> None:
    routes = router(2)
    for endpoint in routes.endpoints:
        for _ in range(FAILURES):
            endpoint.faulted(endpoint.started(0.0), BROKEN, 0.0)
    assert {start(routes)[0] for _ in range(4)} == set(routes.endpoints)


def test_a_wish_to_wait_holds_for_one_server_only() -> None:
    routes = router(2)
    busy, other = routes.endpoints
    busy.faulted(busy.started(0.0), BUSY, 0.0)
    assert {start(routes, 1.0)[0] for _ in range(6)} == {other}
    alone = Router([busy])
    assert alone.choose(1.0) == 6.0
    assert alone.choose(7.5) is busy


def test_a_server_that_refuses_for_good_is_out() -> None:
    routes = router(2)
    routes.endpoints[0].refusal = Fault("auth", "", Verdict.FATAL)
    assert not routes.all_refuse()
    assert {start(routes)[0] for _ in range(4)} == {routes.endpoints[1]}
    routes.endpoints[1].refusal = Fault("quota", "", Verdict.QUOTA)
    assert routes.all_refuse()
    routes.reopen()
    assert not routes.all_refuse()


def test_another_server_is_preferred_to_one_that_just_failed() -> None:
    routes = router(2)
    first, second = routes.endpoints
    second.started(0.0)
    assert start(routes, avoid=first)[0] is second


# --- keys ---------------------------------------------------------------------------------------------------------


def test_keys_of_what_was_asked_before_are_what_they_were() -> None:
    """Spelled out: a changed key would ask, and pay, for everything again."""
    sampling = {"max_new_tokens": 512, "top_p": None, "temperature": None, "seed": None}
    teacher = {"base_url": "http://localhost:8000/v1", "model": "m"}
    messages = [{"role": "user", "content": "hi"}]
    assert request_key(teacher, sampling, messages) == "0b30815afebad30d6a00f0bdccc204d7"
    keys = {
        request_key(teacher, sampling, messages),
        request_key(teacher, sampling, messages, 1),
        request_key(teacher, sampling, messages, schema={"type": "object"}),
        request_key(teacher, sampling, messages, schema={"type": "array"}),
    }
    assert len(keys) == 4
    assert GenerationRequest("k", ()) == GenerationRequest("k", (), schema=None)


def test_several_servers_have_one_name_in_any_order() -> None:
    assert endpoint_name(["http://me:secret@a/v1"]) == "http://a/v1"
    assert endpoint_name(["http://a/v1", "http://b/v1"]) == endpoint_name(["http://c/v1", "http://a/v1"])


# --- features -----------------------------------------------------------------------------------------------------


def refusal(text: str) -> Fault:
    return from_status(400, text, {}, 0.0)


def test_a_schema_falls_back_to_any_json_and_then_to_text() -> None:
    features = Features()
    body: dict[str, Any] = {"response_format": json_schema_format({"type": "object"})}
    other: dict[str, Any] = {"response_format": json_schema_format({"type": "array"})}
    first = features.shape(body)
    assert first == body
    assert features.adapts_to(refusal("json_schema is not supported"), body, first)
    second = features.shape(body)
    assert second == {"response_format": {"type": "json_object"}}
    # Another request found out the same while it was under way: no step further.
    assert features.adapts_to(refusal("json_schema is not supported"), body, first)
    assert features.shape(body) == second
    assert features.adapts_to(refusal("unknown response_format"), body, second)
    assert features.shape(body) == {}
    assert features.shape(other) == other
    assert not features.adapts_to(refusal("response_format"), body, {})
    assert not features.adapts_to(refusal("prompt is too long"), other, other)


# --- giving up ----------------------------------------------------------------------------------------------------


def test_the_breaker_trips_early_where_nothing_was_ever_answered() -> None:
    breaker = Breaker()
    trips = [breaker.add_failure("connection", "refused") for _ in range(FIRST)]
    assert [trip is not None for trip in trips] == [False] * (FIRST - 1) + [True]
    assert trips[-1] is not None
    assert "20 of the last 20" in trips[-1].words()
    assert "inference.base_url" in trips[-1].words()


def test_the_breaker_names_the_top_error_and_its_share() -> None:
    breaker = Breaker()
    for _ in range(WINDOW):
        breaker.add_answer()
    trip = None
    for number in range(WINDOW // 2):
        assert trip is None
        trip = breaker.add_failure(*(("timeout", "late") if number % 4 else ("server_error", "oops")))
    assert trip is not None
    assert (trip.reason, trip.share, trip.failed, trip.of) == ("timeout", 0.75, 100, 200)
    assert "75% of them with timeout: late" in trip.words()
    assert "inference.timeout" in trip.words()


def test_the_breaker_forgives_what_is_long_past() -> None:
    breaker = Breaker()
    for _ in range(20):
        for _ in range(30):
            assert breaker.add_failure("timeout", "") is None or not breaker._answered
        for _ in range(40):
            breaker.add_answer()
    assert breaker.add_failure("timeout", "") is None


def test_a_request_that_must_be_alone_has_nothing_beside_it() -> None:
    first, second = Endpoint("a", Window(4, adaptive=False)), Endpoint("b", Window(4, adaptive=False))
    routes = Router([first, second])
    numbers = [first.started(0.0), second.started(0.0)]
    assert routes.choose(0.0, alone=True) == math.inf
    second.dropped(numbers[1])
    assert routes.choose(0.0, alone=True) is second
    number = second.started(0.0, alone=True)
    # The other takes what comes, and one that is alone waits for either.
    assert routes.choose(0.0) is first
    assert routes.choose(0.0, alone=True) == math.inf
    second.answered(number, 1.0, 10)
    assert routes.choose(0.0, first) is second
