"""The API teacher against servers with limits, latency and faults, alone and several at once."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_openai_teacher import KEY, ask, requests, teacher
from tests.support.fault_server import Running, answer_to, prompt, running
from tests.support.jobs import write_prompts
from tests.support.traffic_server import traffic

from easydistill.asking.label import LabelStage
from easydistill.config.dataset import DatasetConfig
from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import Completion, Failure, GenerationRequest, Outcome
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.engine.secrets import Redactor
from easydistill.engine.stage import StageContext, StageResult
from easydistill.errors import TeacherError
from easydistill.jobs._api_teacher import api_teacher

PRICES = {"input": 1.0, "output": 2.0}
EACH = (5 * 1.0 + 7 * 2.0) / 1e6
"""Price of an answer of the fault server."""


def test_a_token_bucket_is_used_up_and_no_row_is_lost() -> None:
    prompts = [f"p {n}" for n in range(800)]
    with traffic(rate=100, burst=50, median=0.2, sigma=0.5, seed=3) as server:
        outcomes = ask(teacher(server, max_concurrency=256, timeout=10, max_retries=6), *prompts)
        stats = server.stats()
    assert all(isinstance(outcome, Completion) for outcome in outcomes.values())
    assert stats["paid"] == dict.fromkeys(prompts, 1)
    allowed = 50 + 100 * (stats["last"] - stats["first"])
    # Not collapsed; how much is used of it is for benchmarks/engine to tell, on a machine that does nothing else.
    assert stats["admitted"] >= 0.5 * allowed
    assert stats["refused"] <= 0.5 * stats["admitted"]


def test_faults_of_every_kind_on_top() -> None:
    prompts = [f"p {n}" for n in range(400)]
    with traffic(rate=200, burst=50, median=0.05, sigma=0.5, faults=0.2, seed=3) as server:
        outcomes = ask(teacher(server, max_concurrency=256, timeout=1, max_retries=20), *prompts)
        stats = server.stats()
    assert {key: getattr(outcome, "text", outcome) for key, outcome in outcomes.items()} == {
        text: answer_to(text) for text in prompts
    }
    assert stats["paid"] == dict.fromkeys(prompts, 1)
    assert stats["faults"] > 40


def test_retry_after_holds_for_all_workers(server: Running) -> None:
    """One is refused for a second: nobody else asks within it."""
    ask(teacher(server, max_concurrency=1), "first")
    server.reset()
    ask(
        teacher(server, max_concurrency=2, timeout=5),
        prompt("x", "rate_limit_second", 1),
        *(f"p {n}" for n in range(50)),
    )
    times = server.stats()["times"]
    refused = min(times[prompt("x", "rate_limit_second", 1)])
    early = [text for text, when in times.items() if 0.05 < when[0] - refused < 0.95]
    assert early == []


@pytest.fixture
def server() -> Any:
    with running() as found:
        yield found


def test_requests_a_minute_are_kept_and_spread(server: Running) -> None:
    prompts = [f"p {n}" for n in range(31)]
    started = time.monotonic()
    ask(teacher(server, requests_per_minute=900), *prompts)
    assert 1.8 < time.monotonic() - started < 6
    times = sorted(when for all_of in server.stats()["times"].values() for when in all_of)
    assert len([when for when in times if when - times[0] < 1.0]) <= 15 + 5


def test_tokens_a_minute_count_what_was_really_used(server: Running) -> None:
    """Each takes 12 tokens; taken for 512 + prompt at first."""
    started = time.monotonic()
    ask(
        teacher(server, tokens_per_minute=60 * 240, max_concurrency=4, max_new_tokens=100),
        *(f"p {n}" for n in range(60)),
    )
    assert 1.5 < time.monotonic() - started < 12


# --- several servers ----------------------------------------------------------------------------------------------


def test_work_is_shared_and_goes_on_without_a_server_that_is_not_there(server: Running) -> None:
    with running(latency=0.01) as other:
        dead = "http://127.0.0.1:9/v1"
        asked = teacher(server, base_url=[dead, server.base_url, other.base_url], model="teacher-1", max_retries=6)
        outcomes = ask(asked, *(f"p {n}" for n in range(300)))
        assert all(isinstance(outcome, Completion) for outcome in outcomes.values())
        paid = [server.stats()["paid"], other.stats()["paid"]]
    assert min(map(len, paid)) > 30
    assert not paid[0].keys() & paid[1].keys()


def test_a_server_that_takes_one_a_second_does_not_hold_up_the_other() -> None:
    prompts = [f"p {n}" for n in range(400)]
    with running(latency=0.05) as one, traffic(median=0.05, rate=1, burst=1) as slow:
        outcomes = ask(
            teacher(one, base_url=[one.base_url, slow.base_url], max_concurrency=16, timeout=5, model="teacher-1"),
            *prompts,
        )
        assert all(isinstance(outcome, Completion) for outcome in outcomes.values())
        assert len(one.stats()["paid"]) > 300


def test_a_key_refused_by_one_server_is_tried_at_the_other(server: Running) -> None:
    """Only where all refuse does the run end; the next starts afresh."""
    bad = prompt("x", "auth")
    with running() as other:
        asked = teacher(server, base_url=[server.base_url, other.base_url], model="m")
        with pytest.raises(TeacherError, match=r"inference\.api_key"):
            ask(asked, bad)
        assert sum(server.stats()["attempts"].values()) == sum(other.stats()["attempts"].values()) == 1
        assert set(ask(asked, "fine")) == {"fine"}


def test_the_identity_of_several_servers() -> None:
    def identity(*urls: str) -> dict[str, Any]:
        return teacher(Running(1), base_url=list(urls), model="m").identity()

    a, b = "http://a/v1", "http://b/v1"
    assert identity(a, b) == identity(b, a) == identity("http://c", b, a)
    assert identity(a) == {"base_url": a, "model": "m"} == teacher(Running(1), base_url=a, model="m").identity()


# --- giving up ----------------------------------------------------------------------------------------------------


def test_a_run_in_which_everything_fails_ends_early(server: Running) -> None:
    outcomes: dict[str, Outcome] = {}
    with pytest.raises(TeacherError, match=r"failed for good, 100% of them with server_error(.|\n)*→"):
        ask(
            teacher(server, max_retries=1, max_concurrency=8),
            *(prompt(f"x {n}", "server_error") for n in range(500)),
            into=outcomes,
        )
    assert 20 <= len(outcomes) < 60


def test_rejected_content_never_ends_a_run(server: Running) -> None:
    outcomes = ask(teacher(server), *(prompt(f"x {n}", "moderated") for n in range(300)))
    assert len(outcomes) == 300
    assert all(isinstance(outcome, Failure) for outcome in outcomes.values())


# --- budgets ------------------------------------------------------------------------------------------------------


def test_a_budget_ends_the_run_and_what_is_under_way_is_recorded(server: Running) -> None:
    outcomes: dict[str, Outcome] = {}
    asked = teacher(server, max_tokens_total=1000, max_new_tokens=50)
    with pytest.raises(TeacherError, match=r"spent so far(.|\n)*raise inference\.max_tokens_total"):
        ask(asked, *(f"p {n}" for n in range(500)), into=outcomes)
    assert set(server.stats()["paid"]) == set(outcomes)
    assert 1000 - 80 <= 12 * len(outcomes) <= 1000


class Quiet(Reporter):
    def __init__(self) -> None:
        super().__init__(None, quiet=True)


def label(folder: Path, server: Running, prompts: list[str], **inference: Any) -> StageResult:
    """The label stage as the runner runs it."""
    values = {"timeout": 2, "max_retry_wait": 0.2, "max_new_tokens": 50} | inference
    config = ApiInferenceConfig(base_url=server.base_url, api_key=KEY, **values)
    dataset = DatasetConfig(instruction_path=str(write_prompts(folder, prompts)))
    stage = LabelStage(dataset, config, api_teacher(config))
    directory = folder / "stage"
    directory.mkdir(exist_ok=True)
    return stage.run(StageContext(directory, folder, {}, "f", StopSignal(), Quiet(), Redactor()))


def test_a_resumed_run_knows_what_was_spent_before(server: Running, tmp_path: Path) -> None:
    prompts = [f"p {n}" for n in range(60)]
    budget = {"prices": PRICES, "max_cost": 40 * EACH}
    with pytest.raises(TeacherError, match="max_cost"):
        label(tmp_path, server, prompts, **budget)
    first = len(server.stats()["paid"])
    assert 30 <= first <= 40
    with pytest.raises(TeacherError, match=f"{5 * first:,} tokens in"):
        label(tmp_path, server, prompts, **budget)
    assert len(server.stats()["paid"]) - first <= 2  # estimates are closer now; not a budget's worth again
    result = label(tmp_path, server, prompts, prices=PRICES, max_cost=1.0)
    assert server.stats()["paid"] == dict.fromkeys(prompts, 1)
    spent = result.metrics["spent"]
    assert spent["cost"] == pytest.approx(60 * EACH)
    assert (spent["answers"], spent["prompt_tokens"], spent["completion_tokens"]) == (60, 300, 420)


def test_cost_is_unknown_without_prices(server: Running, tmp_path: Path) -> None:
    assert label(tmp_path, server, ["a", "b"]).metrics["spent"]["cost"] is None


def test_truncated_answers_are_kept_or_rejected(server: Running, tmp_path: Path) -> None:
    prompts = ["fine", prompt("x", "long")]
    assert label(tmp_path, server, prompts).rows.rejected == {}
    result = label(tmp_path, server, prompts, truncation="reject")
    assert result.rows.rejected == {"truncated": 1}
    assert max(server.stats()["attempts"].values()) == 1  # the answer on disk was judged anew


# --- structure ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refused", "kinds"),
    [(0, ["json_schema"]), (1, ["json_schema", "json_object"]), (2, ["json_schema", "json_object", None])],
)
def test_a_schema_is_sent_as_far_as_the_server_takes_it(refused: int, kinds: list[str | None]) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    found: list[Outcome] = []
    with traffic(refuse_formats=refused) as server:
        asked = teacher(server, max_retries=0)
        for text in ("one", "two"):
            request = GenerationRequest(text, ({"role": "user", "content": text},), schema=schema)
            asked.generate([request], {}.__contains__, found.extend, StopSignal())
        asked.generate(requests("plain"), {}.__contains__, found.extend, StopSignal())
        sent = [(body.get("response_format") or {}).get("type") for body in server.stats()["bodies"]]
    assert [outcome.attempts for outcome in found] == [1, 1, 1]
    assert sent == [*kinds, kinds[-1], None]


def test_stopping_ends_waiting_for_a_limit(server: Running) -> None:
    stop = StopSignal()
    threading.Timer(0.4, stop.request).start()
    started = time.monotonic()
    outcomes = ask(teacher(server, requests_per_minute=30), *(f"p {n}" for n in range(100)), stop=stop)
    assert time.monotonic() - started < 2
    assert 1 <= len(outcomes) <= 3
