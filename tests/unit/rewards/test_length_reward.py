"""`length`: the formula, and that it is one: bounded, without jumps, never better further out."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.support.rollouts import in_threads, rollout

from easydistill.rewards import RewardContext
from easydistill.rewards.length import Config, make, penalty


@pytest.mark.parametrize(
    ("config", "tokens", "value"),
    [
        (Config(max_tokens=100, buffer=20), 0, 0.0),
        (Config(max_tokens=100, buffer=20), 80, 0.0),
        (Config(max_tokens=100, buffer=20), 81, -0.05),
        (Config(max_tokens=100, buffer=20), 90, -0.5),
        (Config(max_tokens=100, buffer=20), 100, -1.0),
        (Config(max_tokens=100, buffer=20), 101, -1.0),
        (Config(max_tokens=100), 100, 0.0),
        (Config(max_tokens=100), 101, -1.0),
        (Config(min_tokens=10), 0, -1.0),
        (Config(min_tokens=10), 4, -0.6),
        (Config(min_tokens=10), 10, 0.0),
        (Config(min_tokens=10), 10**9, 0.0),
        (Config(min_tokens=10, max_tokens=10), 10, 0.0),
    ],
)
def test_the_formula(config: Config, tokens: int, value: float) -> None:
    assert penalty(config, tokens) == pytest.approx(value)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    low, free, buffer = draw(st.integers(0, 50)), draw(st.integers(0, 50)), draw(st.integers(0, 50))
    assume(low + free + buffer > 0)
    return Config(min_tokens=low, max_tokens=low + free + buffer, buffer=buffer)


@given(configs(), st.integers(0, 200))
def test_it_is_worst_furthest_out_and_has_no_jumps(config: Config, tokens: int) -> None:
    assert config.max_tokens is not None
    here, longer = penalty(config, tokens), penalty(config, tokens + 1)
    assert -1.0 <= here <= 0.0
    if tokens < config.min_tokens:
        assert longer - here == pytest.approx(1 / config.min_tokens)
    else:
        assert longer <= here
        if config.buffer:
            assert here - longer <= 1 / config.buffer + 1e-9
    free = config.min_tokens <= tokens <= config.max_tokens - config.buffer
    assert (here == 0.0) == free


def test_tokens_are_counted_with_the_end_token_and_in_threads() -> None:
    reward = make(Config(max_tokens=4, buffer=2), RewardContext())
    batch = [rollout("long text, few tokens", tokens=2), rollout("x", tokens=3), rollout("x", tokens=9, ended=False)]
    assert reward(batch) == [0.0, -0.5, -1.0]
    assert in_threads(reward, [batch] * 3) == [[0.0, -0.5, -1.0]] * 3
    reward.close()
