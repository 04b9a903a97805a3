"""The API teacher against a real HTTP server that misbehaves in every way we know."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.fault_server import Running, answer_to, prompt, running

from easydistill.config.inference import ApiInferenceConfig
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.secrets import Redactor
from easydistill.errors import QuotaExhausted, TeacherError
from easydistill.teachers.base import Completion, Failure, GenerationRequest, Outcome, outcome_from_record
from easydistill.teachers.openai import OpenAITeacher

KEY = "sk-secret-1234567890"


@pytest.fixture
def server() -> Iterator[Running]:
    with running() as found:
        yield found


def teacher(server: Running, **values: Any) -> OpenAITeacher:
    base: dict[str, Any] = {
        "base_url": server.base_url,
        "api_key": KEY,
        "timeout": 0.6,
        "max_retries": 4,
        "max_retry_wait": 0.2,
        "max_concurrency": 64,
    }
    config = ApiInferenceConfig(**(base | values))
    redactor = Redactor()
    redactor.register_config(config)
    return OpenAITeacher(config, redactor)


def requests(*prompts: str) -> list[GenerationRequest]:
    return [GenerationRequest(text, ({"role": "user", "content": text},)) for text in prompts]


def ask(asked: OpenAITeacher, *prompts: str, stop: StopSignal | None = None) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}

    def record(found: Any) -> None:
        for outcome in found:
            assert outcome.key not in outcomes, "recorded twice"
            outcomes[outcome.key] = outcome

    asked.generate(requests(*prompts), outcomes.__contains__, record, stop or StopSignal())
    return outcomes


# Fault → the reason it gives when it does not heal. None: a complete answer, whatever is in it.
REASONS: dict[str, str | None] = {
    "rate_limit": "rate_limit",
    "server_error": "server_error",
    "unavailable": "server_error",
    "bad_request": "http_400",
    "unprocessable": "http_422",
    "hang": "timeout",
    "drop": "connection",
    "drop_body": "connection",
    "drop_stream": "stream_dropped",
    "end_early": "stream_dropped",
    "html": "garbage",
    "truncated": "garbage",
    "wrong_shape": "garbage",
    "not_utf8": "garbage",
    "error_in_200": "server_error",
    "echo_key": "http_400",
    "empty": None,
    "null": None,
    "filtered": None,
    "long": None,
    "reasoning": None,
}
HEALS = [name for name, reason in REASONS.items() if reason is not None and not reason.startswith("http_")]


@pytest.mark.parametrize("stream", [False, True])
def test_two_thousand_requests_with_every_fault(server: Running, stream: bool) -> None:
    """None lost, none paid twice, each failure with its reason."""
    healing = [prompt(f"heals {n}", HEALS[n % len(HEALS)], 1 + n % 2) for n in range(500)]
    lasting = [prompt(f"stays {n}", list(REASONS)[n % len(REASONS)], 0) for n in range(200)]
    fine = [f"fine {n}" for n in range(1300)]
    everything = [*fine, *healing, *lasting]
    outcomes = ask(teacher(server, stream=stream), *everything)

    assert outcomes.keys() == set(everything)
    for text in (*fine, *healing):
        found = outcomes[text]
        assert isinstance(found, Completion), (text, found)
        assert found.text == answer_to(text)
        assert (found.prompt_tokens, found.completion_tokens, found.finish_reason) == (5, 7, "stop")
    for n, text in enumerate(lasting):
        name = list(REASONS)[n % len(REASONS)]
        found = outcomes[text]
        if REASONS[name] is None:
            assert isinstance(found, Completion), (name, found)
            continue
        assert isinstance(found, Failure), (name, found)
        allowed = {REASONS[name]}
        if name.startswith(("drop", "end")) or (stream and name in {"html", "truncated", "wrong_shape", "not_utf8"}):
            allowed |= {"connection", "stream_dropped", "garbage"}
        assert found.reason in allowed, (name, found)
        assert found.passing == (not found.reason.startswith("http_"))
        assert found.attempts == (1 if found.reason.startswith("http_") else 5)
        assert found.detail
    paid = server.stats()["paid"]
    assert max(paid.values()) == 1, [text for text, count in paid.items() if count > 1][:3]
    assert server.stats()["most_active"] <= 64
    assert KEY not in repr(outcomes)


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_kept_as_they_came(server: Running, stream: bool) -> None:
    asked = teacher(server, stream=stream)
    kinds = ("empty", "blank", "null", "filtered", "long", "reasoning")
    outcomes = ask(asked, *(prompt("x", kind) for kind in kinds))
    found = {kind: outcomes[prompt("x", kind)] for kind in kinds}
    assert all(isinstance(outcome, Completion) for outcome in found.values())
    texts = {kind: outcome.text for kind, outcome in found.items() if isinstance(outcome, Completion)}
    assert texts == {
        "empty": "", "blank": " \n ", "null": None, "filtered": "", "long": "cut off", "reasoning": "so it is"
    }  # fmt: skip
    assert isinstance(found["reasoning"], Completion)
    assert found["reasoning"].reasoning == "let me think"
    assert isinstance(found["filtered"], Completion)
    assert found["filtered"].finish_reason == "content_filter"
    assert found["reasoning"].model == "teacher-1"
    assert found["reasoning"].extra["id"] == "chat-1"


def test_outcomes_survive_the_journal(server: Running) -> None:
    outcomes = ask(teacher(server), "good", prompt("bad", "bad_request"))
    for outcome in outcomes.values():
        assert outcome_from_record(json.loads(json.dumps(outcome.as_record()))) == outcome


@pytest.mark.parametrize(("fault", "wait"), [("rate_limit_second", 1.0), ("rate_limit_date", 1.0)])
def test_retry_after_is_honoured(server: Running, fault: str, wait: float) -> None:
    text = prompt("x", fault, 1)
    outcomes = ask(teacher(server), text)
    first, second = server.stats()["times"][text]
    assert isinstance(outcomes[text], Completion)
    assert second - first >= wait


def test_an_absurd_retry_after_fails_the_row_at_once(server: Running) -> None:
    started = time.monotonic()
    text = prompt("x", "rate_limit_day")
    outcome = ask(teacher(server), text)[text]
    assert isinstance(outcome, Failure)
    assert (outcome.reason, outcome.passing, outcome.attempts) == ("rate_limit", True, 1)
    assert time.monotonic() - started < 5


def test_no_quota_stops_and_keeps_what_is_finished(server: Running) -> None:
    outcomes: dict[str, Outcome] = {}
    asked = teacher(server, max_concurrency=4)
    prompts = [*(f"fine {n}" for n in range(40)), prompt("x", "quota"), *(f"later {n}" for n in range(400))]
    with pytest.raises(QuotaExhausted, match="top up"):
        asked.generate(
            requests(*prompts),
            outcomes.__contains__,
            lambda found: outcomes.update({o.key: o for o in found}),
            StopSignal(),
        )
    paid = server.stats()["paid"]
    assert 40 <= len(outcomes) < 200
    # What the server was paid for is here.
    assert set(paid) == set(outcomes)


@pytest.mark.parametrize(("fault", "mend"), [("auth", "inference.api_key"), ("model", "inference.model")])
def test_a_refusal_that_holds_for_all_rows_stops(server: Running, fault: str, mend: str) -> None:
    with pytest.raises(TeacherError, match=mend):
        ask(teacher(server, model="m"), prompt("x", fault), *(f"y {n}" for n in range(500)))
    assert len(server.stats()["attempts"]) < 200


def test_a_server_that_is_not_there_is_a_clear_error() -> None:
    config = ApiInferenceConfig(base_url="http://127.0.0.1:9/v1", max_retries=1, max_retry_wait=0.1)
    with pytest.raises(TeacherError, match=r"inference\.model"):
        OpenAITeacher(config, Redactor()).identity()


def test_the_key_is_hidden_in_errors_that_echo_it(server: Running) -> None:
    text = prompt("x", "echo_key")
    outcome = ask(teacher(server), text)[text]
    assert isinstance(outcome, Failure)
    assert "Incorrect API key" in outcome.detail
    assert KEY not in outcome.detail


def test_a_server_that_does_not_know_an_option_is_asked_without_it(server: Running) -> None:
    text = prompt("x", "no_stream_options")
    outcome = ask(teacher(server, stream=True, max_retries=0), text, "y")[text]
    assert isinstance(outcome, Completion)
    assert outcome.text == "plain"
    other = prompt("x", "wants_max_completion_tokens")
    outcome = ask(teacher(server, max_retries=0, max_new_tokens=33), other)[other]
    assert isinstance(outcome, Completion)
    assert outcome.text == "at most 33"


def test_what_is_sent(server: Running) -> None:
    ask(teacher(server), "plain")
    ask(teacher(server, temperature=0.3, top_p=0.9, seed=4, stream=True, model="big"), "full")
    plain, full = server.stats()["bodies"]
    messages = [{"role": "user", "content": "plain"}]
    assert plain == {"model": "teacher-1", "messages": messages, "max_tokens": 512}
    assert {name: full[name] for name in ("model", "temperature", "top_p", "seed", "stream")} == {
        "model": "big", "temperature": 0.3, "top_p": 0.9, "seed": 4, "stream": True
    }  # fmt: skip


def test_stopping_drains(server: Running) -> None:
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
    asked = teacher(server, max_retry_wait=60, max_retries=20)
    assert ask(asked, *(prompt(f"x {n}", "rate_limit_second") for n in range(5)), stop=stop) == {}
    assert time.monotonic() - started < 3


def test_finished_rows_are_not_asked_for(server: Running) -> None:
    asked = teacher(server)
    seen: list[str] = []
    asked.generate(
        requests("a", "b", "c"), lambda key: key != "b", lambda found: seen.extend(o.key for o in found), StopSignal()
    )
    assert seen == ["b"]
    assert set(server.stats()["attempts"]) == {"b"}


def test_works_inside_a_running_loop(server: Running) -> None:
    async def notebook() -> dict[str, Outcome]:
        return ask(teacher(server), "a", "b")

    assert set(asyncio.run(notebook())) == {"a", "b"}


def test_a_bug_in_recording_is_not_swallowed(server: Running) -> None:
    def record(found: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        teacher(server).generate(requests("a"), lambda key: False, record, StopSignal())
    assert caught.group_contains(ZeroDivisionError)


def test_credentials_in_the_url_are_not_part_of_the_identity(server: Running) -> None:
    url = server.base_url.replace("http://", "http://user:pass@")
    assert teacher(server, base_url=url).identity() == {"base_url": server.base_url, "model": "teacher-1"}
