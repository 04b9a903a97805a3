"""The forecast of `plan`: never outside the possible range, and extrapolated from a sample if there is one."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from easydistill.asking.answers import JOURNAL
from easydistill.asking.forecast import forecast, forecast_calls
from easydistill.config.inference import ApiInferenceConfig, PricesConfig
from easydistill.contracts.teacher import Completion, Failure
from easydistill.data.journal import Journal
from easydistill.data.messages import Message

PRICES = PricesConfig(input=1.0, output=4.0)


def requests(count: int, seed: int = 0) -> dict[str, tuple[Message, ...]]:
    draw = random.Random(seed)
    return {f"key-{n}": ({"role": "user", "content": "word " * draw.randint(5, 50)},) for n in range(count)}


def answer(key: str, messages: tuple[Message, ...], tokens: int) -> Completion:
    return Completion(key, "text", None, "stop", len(messages[0]["content"]) // 5 + 8, tokens)


def journal_of(path: Path, asked: dict[str, tuple[Message, ...]], count: int, seed: int = 1) -> Journal:
    draw = random.Random(seed)
    journal = Journal(path)
    for key in list(asked)[:count]:
        journal.append(answer(key, asked[key], draw.randint(20, 60)).as_record())
    return journal


def test_without_answers_the_forecast_is_the_possible_range() -> None:
    asked = requests(40)
    found = forecast(asked, (), None, 100, PRICES)
    words = sum(len(messages[0]["content"].split()) for messages in asked.values())
    assert found.sample == 0
    assert found.prompt_tokens[0] <= words <= found.prompt_tokens[1]
    assert found.completion_tokens == (40, 4000)
    assert found.cost is not None
    assert found.cost[1] == (found.prompt_tokens[1] * 1.0 + 4000 * 4.0) / 1e6


def test_answers_of_a_first_run_narrow_the_forecast(tmp_path: Path) -> None:
    asked = requests(400)
    with journal_of(tmp_path / "journal.jsonl", asked, 50) as journal:
        done = set(list(asked)[:50])
        found = forecast(asked, done, journal, 512, PRICES)
    really = sum(answer(key, asked[key], 0).prompt_tokens for key in asked if key not in done)
    assert found.sample == 50
    assert found.completion_tokens[0] < 350 * 40 < found.completion_tokens[1]
    assert found.completion_tokens[1] - found.completion_tokens[0] < 350 * 10
    assert found.prompt_tokens[0] * 0.9 < really < found.prompt_tokens[1] * 1.1


def test_a_handful_of_answers_is_not_a_sample(tmp_path: Path) -> None:
    asked = requests(20)
    with journal_of(tmp_path / "journal.jsonl", asked, 4) as journal:
        assert forecast(asked, (), journal, 64, None).completion_tokens == (20, 20 * 64)


def test_failures_and_uncounted_answers_are_not_sampled(tmp_path: Path) -> None:
    asked = requests(30)
    with Journal(tmp_path / "journal.jsonl") as journal:
        for key in list(asked)[:15]:
            journal.append(Failure(key, "timeout", "no answer", 3, passing=True).as_record())
        for key in list(asked)[15:]:
            journal.append(Completion(key, "text", None, "stop", 0, 0).as_record())
        assert forecast(asked, (), journal, 64, None).sample == 0


def test_answers_are_only_counted_while_the_model_is_unknown(tmp_path: Path) -> None:
    asked = requests(100)
    journal_of(tmp_path / JOURNAL, {f"other-{key}": messages for key, messages in asked.items()}, 30).close()
    config = ApiInferenceConfig(base_url="http://localhost:1/v1", max_new_tokens=512, prices=PRICES)
    figures = forecast_calls(asked, tmp_path, config, keys_known=False)
    assert (figures["done_rows"], figures["calls"], figures["from_answers"]) == (30, 70, 30)
    assert 70 * 30 < figures["completion_tokens"][0] < figures["completion_tokens"][1] < 70 * 50


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=80), max_size=12), st.integers(0, 12), st.integers(1, 64))
def test_low_is_never_above_high(texts: list[str], done: int, longest: int) -> None:
    asked: dict[str, tuple[Message, ...]] = {
        str(n): ({"role": "user", "content": text},) for n, text in enumerate(texts)
    }
    finished = set(list(asked)[:done])
    found = forecast(asked, finished, None, longest, PRICES)
    left = len(asked) - len(finished)
    assert found.prompt_tokens[0] <= found.prompt_tokens[1]
    assert found.completion_tokens == (left, left * longest)
    assert found.cost is not None
    assert found.cost[0] <= found.cost[1]
