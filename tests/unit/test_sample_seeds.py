"""A prompt that is sampled several times is answered several times, not once: with a fixed seed, too."""

from __future__ import annotations

import pytest

from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import GenerationRequest, request_key, row_seed, sample_seed
from easydistill.data.messages import Message
from easydistill.teachers.openai.chat_completion import request_body

MESSAGES: tuple[Message, ...] = ({"role": "user", "content": "Why?"},)


def keys(count: int) -> list[str]:
    return [request_key({"model": "m"}, {"seed": 7}, MESSAGES, index) for index in range(count)]


def test_a_server_is_sent_another_seed_for_each_sample() -> None:
    config = ApiInferenceConfig(base_url="http://a/v1", seed=7)
    requests = [GenerationRequest(key, MESSAGES, index=index) for index, key in enumerate(keys(3))]
    assert [request_body(config, "m", request)["seed"] for request in requests] == [7, 8, 9]
    unseeded = ApiInferenceConfig(base_url="http://a/v1")
    assert "seed" not in request_body(unseeded, "m", requests[1])


def test_a_request_may_have_its_own_temperature() -> None:
    config = ApiInferenceConfig(base_url="http://a/v1", temperature=0.2)
    requests = [GenerationRequest("k", MESSAGES, temperature=heat) for heat in (None, 0.0, 1.1)]
    assert [request_body(config, "m", request)["temperature"] for request in requests] == [0.2, 0.0, 1.1]


@pytest.mark.parametrize("seed", [0, -(2**63), 2**63 - 1])
def test_the_first_sample_has_the_seed_itself_and_all_fit_in_64_bits(seed: int) -> None:
    assert sample_seed(seed, 0) == seed
    found = {sample_seed(seed, index) for index in range(100)}
    assert len(found) == 100 and min(found) >= -(2**63) and max(found) < 2**63


def test_a_local_teacher_draws_each_sample_from_its_own_stream() -> None:
    """Rows are seeded by their request's key, of which the sample's number is a part."""
    assert len({row_seed(777, key) for key in keys(100)}) == 100
