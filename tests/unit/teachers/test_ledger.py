"""What answers cost, and when there is no room for another."""

from __future__ import annotations

from typing import Any

import pytest

from easydistill.asking.answers import read_answer
from easydistill.config.inference import PricesConfig
from easydistill.contracts.teacher import Completion
from easydistill.teachers.ledger import Ledger
from easydistill.teachers.openai.chat_completion import Answer
from easydistill.teachers.sizes import Size

PRICES = PricesConfig(input=2.0, output=10.0, cached_input=0.5)
SIZE = Size(prompt=90, completion=50, worst_prompt=100, worst_completion=400)


def answer(prompt: int = 1000, completion: int = 500, **more: Any) -> Completion:
    return Completion("k", "some text", prompt_tokens=prompt, completion_tokens=completion, **more)


def test_the_cost_is_that_of_the_prices() -> None:
    ledger = Ledger(PRICES)
    ledger.add(answer(cached_prompt_tokens=400, reasoning_tokens=100))
    assert ledger.cost == pytest.approx((600 * 2 + 400 * 0.5 + 500 * 10) / 1e6)
    assert ledger.as_metrics() == {
        "answers": 1, "answers_without_counts": 0, "prompt_tokens": 1000, "completion_tokens": 500,
        "cached_prompt_tokens": 400, "reasoning_tokens": 100, "cost": 0.0064,
    }  # fmt: skip
    assert ledger.words() == "1,000 tokens in (400 of them cached), 500 out (100 of them reasoning), cost 0.0064"


def test_cached_tokens_cost_the_full_price_where_none_is_given() -> None:
    ledger = Ledger(PricesConfig(input=2.0, output=10.0))
    ledger.add(answer(cached_prompt_tokens=400))
    assert ledger.cost == pytest.approx(0.007)


def test_what_is_unknown_is_not_zero() -> None:
    without = Ledger()
    without.add(answer())
    assert without.cost is None
    assert "cost n/a" in without.words()
    assert without.as_metrics()["cached_prompt_tokens"] is None
    silent = Ledger(PRICES, max_tokens=1000)
    silent.add(answer(0, 0), SIZE)
    assert silent.cost is None
    assert silent.tokens == 500  # the most it can have been
    assert "1 answers without counts" in silent.words()


@pytest.mark.parametrize("limits", [{"max_tokens": 2000}, {"prices": PRICES, "max_cost": 0.0076}])
def test_no_request_starts_that_might_exceed_the_budget(limits: dict[str, Any]) -> None:
    ledger = Ledger(**limits)
    ledger.add(answer(100, 280))
    room = 0
    while ledger.has_room(SIZE):
        ledger.reserve(SIZE)
        room += 1
    assert room == (3 if "max_tokens" in limits else 1)
    for _ in range(room):
        ledger.release(SIZE)
        ledger.add(answer(100, 10), SIZE)
    assert ledger.has_room(SIZE)
    text = ledger.exhausted(SIZE)
    assert "spent so far" in text
    assert "→ raise inference.max_" in text


def test_what_is_on_disk_is_looked_at_once() -> None:
    ledger = Ledger()
    assert ledger.is_new("k")
    ledger.add(answer())
    assert not ledger.is_new("k")
    assert ledger.tokens == 1500


@pytest.mark.parametrize(
    ("usage", "cached", "reasoning"),
    [
        ({"prompt_tokens": 5}, None, None),
        ({"prompt_tokens_details": {"cached_tokens": 3}, "completion_tokens_details": {"reasoning_tokens": 0}}, 3, 0),
        ({"prompt_cache_hit_tokens": 4}, 4, None),
        ({"prompt_tokens_details": None, "completion_tokens_details": {"reasoning_tokens": True}}, None, None),
    ],
)
def test_usage_as_servers_spell_it(usage: dict[str, Any], cached: int | None, reasoning: int | None) -> None:
    found = Answer()
    found.head({"usage": usage})
    arguments = found.arguments()
    assert (arguments["cached_prompt_tokens"], arguments["reasoning_tokens"]) == (cached, reasoning)


def test_what_is_cut_off_is_kept_unless_it_shall_not_be() -> None:
    cut = answer(finish_reason="length")
    assert isinstance(read_answer(cut), dict)
    assert read_answer(cut, "reject")[0] == "truncated"  # type: ignore[index, literal-required]
    assert isinstance(read_answer(answer(finish_reason="stop"), "reject"), dict)
