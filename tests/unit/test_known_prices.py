"""Built-in prices: dated, told as such, overridden by the config, and of no model that only has the same name."""

from __future__ import annotations

import datetime
import json
from importlib import resources
from typing import Any

import pytest
from pydantic import ValidationError

from easydistill.asking.forecast import forecast_calls
from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import Completion
from easydistill.engine.secrets import Redactor
from easydistill.teachers import plan_teacher
from easydistill.teachers.openai.teacher import OpenAITeacher

OPENAI = "https://api.openai.com/v1"


def section(**more: Any) -> ApiInferenceConfig:
    return ApiInferenceConfig.model_validate({"base_url": OPENAI, "model": "gpt-4o-mini", **more})


def test_every_entry_of_the_file_is_a_dated_price() -> None:
    text = resources.files("easydistill.config").joinpath("known_prices.json").read_text(encoding="utf-8")
    data = json.loads(text)
    seen = set()
    for provider in data["providers"]:
        assert provider.keys() == {"hosts", "currency", "as_of", "models"}
        datetime.date.fromisoformat(provider["as_of"])
        assert provider["currency"] in {"USD", "CNY", "EUR"}
        for model in provider["models"]:
            assert 0 < model["input"] < model["output"] < 1000
            assert model.get("cached_input", model["input"]) <= model["input"]
            for key in ((host, name) for host in provider["hosts"] for name in model["names"]):
                assert key not in seen, key
                seen.add(key)
                found = section(base_url=f"https://{key[0]}/v1", model=key[1]).token_prices
                assert found is not None and found.output == model["output"]


@pytest.mark.parametrize(
    "other",
    [
        {"base_url": "http://localhost:8000/v1"},
        {"base_url": [OPENAI, "http://localhost:8000/v1"]},
        {"model": "gpt-4o-2024-05-13"},
        {"model": None},
        {"batch": {}},
    ],
)
def test_what_may_cost_something_else_has_no_built_in_price(other: dict[str, Any]) -> None:
    assert section(**other).token_prices is None
    with pytest.raises(ValidationError, match="max_cost needs to know what tokens cost"):
        section(**other, max_cost=1)


def test_the_configs_own_prices_win() -> None:
    own = section(prices={"input": 7, "output": 8}, max_cost=1)
    assert own.built_in_price is None
    assert own.token_prices is own.prices
    assert plan_teacher(own, None).notes() == []


def test_it_is_told_as_a_built_in_price_of_a_date() -> None:
    known = section(max_cost=1).built_in_price
    assert known is not None
    (note,) = plan_teacher(section(), None).notes()
    assert f"built-in price of {known.as_of}" in note and "as of that date" in note and "inference.prices" in note
    ledger = OpenAITeacher(section(), Redactor()).ledger
    ledger.add(Completion("k", "text", prompt_tokens=1_000_000, completion_tokens=1_000_000))
    assert ledger.cost == pytest.approx(known.input + known.output)
    assert f"USD (built-in price of {known.as_of})" in ledger.words()
    assert ledger.priced() == {"prices_as_of": known.as_of, "currency": "USD"}


def test_a_forecast_has_costs_without_prices_in_the_config(tmp_path: Any) -> None:
    asked = {"k": ({"role": "user", "content": "How much?"},)}
    assert forecast_calls(asked, tmp_path, section(), keys_known=True)["cost"][1] > 0
    assert forecast_calls(asked, tmp_path, section(model="unknown"), keys_known=True)["cost"] is None
    # It is no part of what a run is: a corrected price reruns nothing.
    assert section().identity() == section(prices={"input": 1, "output": 2}).identity()
