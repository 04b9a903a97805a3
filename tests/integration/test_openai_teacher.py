"""The API teacher against a real HTTP server that misbehaves in every way we know."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

import pytest
from tests.support.fault_server import Running, answer_to, plan, prompt, running

from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import Completion, Failure, GenerationRequest, Outcome, outcome_from_record
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.secrets import Redactor
from easydistill.errors import QuotaExhausted, TeacherError
from easydistill.teachers.openai import teacher as module
from easydistill.teachers.openai.teacher import OpenAITeacher

KEY = "sk-secret-1234567890"
both_ways = pytest.mark.parametrize("stream", [False, True])


def teacher(server: Running, **values: Any) -> OpenAITeacher:
    values = {"timeout": 0.6, "max_retries": 4, "max_retry_wait": 0.2, "max_concurrency": 64} | values
    config = ApiInferenceConfig(**{"base_url": server.base_url, "api_key": KEY, **values})
    redactor = Redactor()
    redactor.register_config(config)
    return OpenAITeacher(config, redactor)


def requests(*prompts: str) -> list[GenerationRequest]:
    return [GenerationRequest(text, ({"role": "user", "content": text},)) for text in prompts]


def ask(asked: OpenAITeacher, *prompts: str, stop: StopSignal | None = None, into: Any = None) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {} if into is None else into

    def record(found: Sequence[Outcome]) -> None:
        for outcome in found:
            assert outcome.key not in outcomes, "recorded twice"
            outcomes[outcome.key] = outcome

    asked.generate(requests(*prompts), outcomes.__contains__, record, stop or StopSignal())
    return outcomes


Kind = TypeVar("Kind", Completion, Failure)


def one(kind: type[Kind], asked: OpenAITeacher, text: str) -> Kind:
    outcome = ask(asked, text)[text]
    assert isinstance(outcome, kind), outcome
    return outcome


# Fault → the reasons it gives, whole and streamed, where it does not heal.
REASONS = {
    "rate_limit": ("rate_limit", "rate_limit"),
    "rate_limit_hint": ("rate_limit", "rate_limit"),
    "server_error": ("server_error", "server_error"),
    "unavailable": ("server_error", "server_error"),
    "hang": ("timeout", "timeout"),
    "drop": ("connection", "connection"),
    "drop_body": ("connection", "stream_dropped"),
    "drop_stream": ("connection", "stream_dropped"),
    "end_early": ("connection", "stream_dropped"),
    "only_done": ("connection", "garbage"),
    "error_event": ("connection", "server_error"),
    "broken_event": ("connection", "garbage"),
    "html": ("garbage", "garbage"),
    "truncated": ("garbage", "garbage"),
    "wrong_shape": ("garbage", "garbage"),
    "not_utf8": ("garbage", "garbage"),
    "not_utf8_stream": ("garbage", "garbage"),
    "nested": ("garbage", "garbage"),
    "error_in_200": ("server_error", "server_error"),
    "bad_request": ("http_400", "http_400"),
    "unprocessable": ("http_422", "http_422"),
    "moderated": ("http_403", "http_403"),
    "echo_key": ("http_400", "http_400"),
}
HEALS = [name for name, (reason, _) in REASONS.items() if not reason.startswith("http_")]


@pytest.mark.parametrize("stream", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_thousand_requests_with_every_fault(server: Running, stream: bool) -> None:
    """None lost, none paid twice, no part of an answer taken for the whole, each failure with its reason."""
    healing = plan(seed=7, count=400, faults=HEALS, most=3)
    lasting = {prompt(f"stays {n}", name): name for n in range(5) for name in REASONS}
    fine = [f"fine {n}" for n in range(2000 - len(healing) - len(lasting))]
    outcomes = ask(teacher(server, stream=stream), *fine, *healing, *lasting)

    assert len(outcomes) == 2000
    for text in (*fine, *healing):
        found = outcomes[text]
        assert isinstance(found, Completion), (text, found)
        assert found.text == answer_to(text)
        assert (found.prompt_tokens, found.completion_tokens, found.finish_reason) == (5, 7, "stop")
        assert found.attempts == 1 + text.count("[[fault")
    for text, name in lasting.items():
        found = outcomes[text]
        assert isinstance(found, Failure), (name, found)
        assert found.reason == REASONS[name][stream], (name, found)
        assert found.passing == (not found.reason.startswith("http_"))
        assert found.attempts == (1 if found.reason.startswith("http_") else 5)
        if found.reason in {"garbage", "stream_dropped"} and name != "drop_body":
            assert found.raw
    stats = server.stats()
    assert stats["paid"] == dict.fromkeys((*fine, *healing), 1)
    assert stats["most_active"] <= 64
    assert KEY not in repr(outcomes)


@both_ways
def test_answers_are_kept_as_they_came(server: Running, stream: bool) -> None:
    texts = {
        "empty": "", "blank": " \n ", "null": None, "filtered": "", "long": "cut off", "refusal": None,
        "reasoning": "so it is", "reasoning_short": "so it is", "crlf": "plain",
        "separators": "a\u2028b\u2029c\x85d\r\ne\x1cf",
    }  # fmt: skip
    outcomes = ask(teacher(server, stream=stream), *(prompt("x", kind) for kind in texts))
    found = {kind: outcome for kind in texts if isinstance(outcome := outcomes[prompt("x", kind)], Completion)}
    assert {kind: outcome.text for kind, outcome in found.items()} == texts
    thoughts = {kind for kind, outcome in found.items() if outcome.reasoning == "let me think"}
    assert thoughts == {"reasoning", "reasoning_short"}
    assert [found[kind].finish_reason for kind in ("filtered", "long", "empty")] == ["content_filter", "length", "stop"]
    assert found["refusal"].extra["refusal"] == "I must not"
    assert found["reasoning"].model == "teacher-1"
    assert found["reasoning"].extra["id"] == "chat-1"
    assert set(server.stats()["attempts"].values()) == {1}


@pytest.mark.parametrize("fault", ["no_done", "drop_after_finish", "hang_after_finish", "garbage_after_finish"])
def test_an_answer_is_complete_when_it_says_so(server: Running, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong behind it: it was paid for."""
    monkeypatch.setattr(module, "LINGER_SECONDS", 0.3)
    text = prompt("x", fault)
    outcome = one(Completion, teacher(server, stream=True, timeout=20), text)
    assert outcome.seconds < 10
    assert (outcome.text, outcome.finish_reason, outcome.attempts) == ("half an answer", "stop", 1)
    assert server.stats()["attempts"] == {text: 1}


def test_a_slow_stream_may_take_longer_than_any_time_out(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 1)
    outcome = one(Completion, teacher(server, stream=True, timeout=0.4), prompt("x", "slow_stream"))
    assert outcome.text == "slow but sure"
    assert outcome.seconds > 0.8
    assert outcome.attempts == 1


@both_ways
def test_a_server_that_trickles_is_given_up(server: Running, stream: bool) -> None:
    started = time.monotonic()
    found = one(Failure, teacher(server, stream=stream, timeout=0.15, max_retries=0), prompt("x", "trickle"))
    assert (found.reason, found.passing) == ("timeout", True)
    assert 1.4 < time.monotonic() - started < 5


def test_a_hang_is_noticed_and_asked_again(server: Running) -> None:
    text = prompt("x", "hang", 1)
    assert one(Completion, teacher(server, timeout=0.3), text).attempts == 2
    first, second = server.stats()["times"][text]
    assert 0.25 < second - first < 3


def test_outcomes_survive_the_journal(server: Running) -> None:
    outcomes = ask(teacher(server), "good", prompt("bad", "bad_request"))
    for outcome in outcomes.values():
        assert outcome_from_record(json.loads(json.dumps(outcome.as_record()))) == outcome


@pytest.mark.parametrize(
    ("fault", "least", "most"),
    [("rate_limit_second", 1.0, 5), ("rate_limit_date", 1.0, 5), ("rate_limit_ms", 0.7, 5), ("rate_limit_now", 0, 1)],
)
def test_retry_after_is_honoured(server: Running, fault: str, least: float, most: float) -> None:
    text = prompt("x", fault, 1)
    assert one(Completion, teacher(server), text).text == answer_to(text)
    first, second = server.stats()["times"][text]
    assert least <= second - first < most


def test_an_absurd_retry_after_fails_the_row_at_once(server: Running) -> None:
    outcome = one(Failure, teacher(server), prompt("x", "rate_limit_day"))
    assert (outcome.reason, outcome.passing, outcome.attempts) == ("rate_limit", True, 1)


@both_ways
def test_connections_are_kept(server: Running, stream: bool) -> None:
    ask(teacher(server, stream=stream, max_concurrency=8, timeout=5), *(f"p {n}" for n in range(200)))
    assert server.stats()["connections"] <= 8 + 3  # those that ask for the model and the statistics


def test_concurrency_is_reached_and_never_exceeded() -> None:
    asked, tasks = requests(*(f"p {n}" for n in range(300))), set[int]()
    with running(latency=0.05) as slow:
        asker = teacher(slow, max_concurrency=20, timeout=5)
        asker.generate(asked, {}.__contains__, lambda _: tasks.add(len(asyncio.all_tasks())), StopSignal())
        assert slow.stats()["most_active"] == 20
    # No task for each request: the workers, what starts them, what watches for the stop.
    assert max(tasks) <= 22


# --- what ends a run ----------------------------------------------------------------------------------------------


def test_no_quota_stops_and_keeps_what_is_finished(server: Running) -> None:
    outcomes: dict[str, Outcome] = {}
    fine, later = (f"fine {n}" for n in range(40)), (f"later {n}" for n in range(400))
    with pytest.raises(QuotaExhausted, match="top up"):
        ask(teacher(server, max_concurrency=4), *fine, prompt("x", "quota"), *later, into=outcomes)
    assert 40 <= len(outcomes) < 200
    # What the server was paid for is here.
    assert set(server.stats()["paid"]) == set(outcomes)


def test_what_is_under_way_when_the_quota_ends_is_recorded() -> None:
    outcomes: dict[str, Outcome] = {}
    slow = prompt("slow", "slow_stream")
    with running() as server, pytest.raises(QuotaExhausted):
        ask(teacher(server, stream=True), slow, prompt("x", "quota"), prompt("y", "rate_limit_minute"), into=outcomes)
    assert set(outcomes) == {slow}


@pytest.mark.parametrize(("fault", "hint"), [("auth", "inference.api_key"), ("model", "inference.model")])
def test_a_refusal_that_holds_for_all_rows_stops(server: Running, fault: str, hint: str) -> None:
    with pytest.raises(TeacherError, match=hint) as caught:
        ask(teacher(server, model="m"), prompt("x", fault), *(f"y {n}" for n in range(500)))
    assert not isinstance(caught.value, QuotaExhausted)
    assert KEY not in repr(caught.value)
    assert len(server.stats()["attempts"]) < 200


def test_a_teacher_can_be_asked_again_after_a_stop(server: Running) -> None:
    text, asked = prompt("x", "quota", 1), teacher(server)
    with pytest.raises(QuotaExhausted):
        ask(asked, text)
    assert one(Completion, asked, text).text == answer_to(text)


@pytest.mark.parametrize("models", [(), *((prompt("x", fault),) for fault in ("html", "wrong_shape", "drop", "hang"))])
def test_a_model_that_cannot_be_found_out_is_a_clear_error(models: tuple[str, ...]) -> None:
    with running(models=models) as server, pytest.raises(TeacherError, match=r"inference\.model"):
        teacher(server, max_retries=1, timeout=0.3).identity()


def test_the_first_model_is_asked_for_once() -> None:
    with running(models=(prompt("first", "server_error", 2), "second")) as server:
        asked = teacher(server)
        assert asked.identity() == {"base_url": server.base_url, "model": "first"}
    assert asked.identity() == {"base_url": server.base_url, "model": "first"}


def test_stopping_drains() -> None:
    with running(latency=0.3) as slow:
        stop = StopSignal()
        threading.Timer(0.9, stop.request).start()
        outcomes = ask(teacher(slow, max_concurrency=5, timeout=5), *(f"p {n}" for n in range(500)), stop=stop)
        paid = slow.stats()["paid"]
    assert 5 <= len(outcomes) < 100
    assert set(paid) == set(outcomes)


def test_stopping_ends_a_long_pause(server: Running) -> None:
    stop = StopSignal()
    threading.Timer(0.4, stop.request).start()
    started = time.monotonic()
    assert ask(teacher(server), *(prompt(f"x {n}", "rate_limit_minute") for n in range(5)), stop=stop) == {}
    assert time.monotonic() - started < 5


def test_nothing_starts_once_stop_is_requested(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a repetition that need not wait."""
    monkeypatch.setattr(module, "POLL_SECONDS", 5)
    stop = StopSignal()
    threading.Timer(0.4, stop.request).start()
    asked = teacher(server, max_retries=100_000)
    assert ask(asked, *(prompt(f"x {n}", "rate_limit_now") for n in range(5)), stop=stop) == {}
    times = [time for times in server.stats()["times"].values() for time in times]
    assert max(times) - min(times) < 2
    server.reset()
    assert ask(asked, "more", stop=stop) == {}
    assert server.stats()["attempts"] == {}


def test_a_bug_in_recording_is_not_swallowed_and_costs_only_its_own_row(server: Running) -> None:
    slow = prompt("slow", "slow_stream")
    outcomes: list[str] = []

    def record(found: Sequence[Outcome]) -> None:
        if found[0].key == "quick":
            raise ZeroDivisionError
        outcomes.extend(outcome.key for outcome in found)

    asked = requests(slow, "quick", *(f"later {n}" for n in range(20)))
    with pytest.raises(ZeroDivisionError):
        teacher(server, stream=True, max_concurrency=2).generate(asked, {}.__contains__, record, StopSignal())
    assert outcomes == [slow]
    assert server.stats()["attempts"] == {slow: 1, "quick": 1}


# --- secrets ------------------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("fault", ["echo_key", "echo_key_often", "echo_key_in_garbage", "echo_key_in_answer", "auth"])
def test_the_key_is_hidden_wherever_a_server_echoes_it(server: Running, fault: str, stream: bool) -> None:
    """Also where a text is cut in the middle of it."""
    try:
        shown = repr(ask(teacher(server, stream=stream, max_retries=0), prompt("x", fault)))
    except TeacherError as error:
        shown = repr(error)
    assert "[redacted]" in shown
    assert KEY[:6] not in shown


def test_credentials_in_the_url_are_hidden(server: Running) -> None:
    url = server.base_url.replace("http://", "http://user:p%40ssword@")
    asked = teacher(server, base_url=url)
    assert asked.identity() == {"base_url": server.base_url, "model": "teacher-1"}
    outcome = one(Failure, asked, prompt("x", "echo_key"))
    assert "Basic [redacted]" in outcome.detail
    assert base64.b64encode(b"user:p@ssword").decode() not in repr(outcome)


# --- what is sent -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "stream"), [("no_stream_options", True), ("wants_max_completion_tokens", False)])
def test_a_server_that_does_not_know_an_option_is_asked_without_it(server: Running, fault: str, stream: bool) -> None:
    """By all workers, also those whose request was under way when the first found out; and by the next run."""
    asked = teacher(server, stream=stream, max_retries=0, max_new_tokens=33, timeout=30)
    outcomes = ask(asked, *(prompt(f"x {n}", fault) for n in range(200)))
    assert {getattr(outcome, "text", outcome) for outcome in outcomes.values()} == {"plain" if stream else "renamed"}
    attempts = Counter(server.stats()["attempts"].values())
    assert 1 <= attempts[2] <= 64
    assert attempts.keys() <= {1, 2}
    server.reset()
    ask(asked, prompt("again", fault))
    (body,) = server.stats()["bodies"]
    assert "stream_options" not in body
    assert body.get("max_tokens", body.get("max_completion_tokens")) == 33


def test_what_is_sent(server: Running) -> None:
    ask(teacher(server), "plain")
    ask(teacher(server, temperature=0.0, top_p=0.9, seed=0, stream=True, model="big"), "full")
    plain, full = server.stats()["bodies"]
    messages = [{"role": "user", "content": "plain"}]
    assert plain == {"model": "teacher-1", "messages": messages, "max_tokens": 512}
    assert full == {
        "model": "big", "messages": [{"role": "user", "content": "full"}], "max_tokens": 512, "temperature": 0.0,
        "top_p": 0.9, "seed": 0, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_finished_rows_are_not_asked_for(server: Running) -> None:
    outcomes: dict[str, Any] = {"a": None, "c": None}
    ask(teacher(server), "a", "b", "c", into=outcomes)
    assert outcomes["b"] is not None
    assert set(server.stats()["attempts"]) == {"b"}


# --- where it runs ------------------------------------------------------------------------------------------------


def test_works_inside_a_running_loop(server: Running) -> None:
    async def notebook() -> None:
        assert set(ask(teacher(server), "a", "b")) == {"a", "b"}
        with pytest.raises(QuotaExhausted):
            ask(teacher(server), prompt("x", "quota"))

    asyncio.run(notebook())


def test_the_sdk_loads_with_this_teacher_only() -> None:
    code = "import easydistill.teachers, easydistill.contracts.teacher, sys; assert 'openai' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
