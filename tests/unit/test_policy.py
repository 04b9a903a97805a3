"""PPO's arithmetic, the order of prompts, and alarms."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest
import torch

from easydistill.config.base import Unfit
from easydistill.methods.policy import ppo
from easydistill.methods.policy.alarms import Alarms, standard_error
from easydistill.methods.policy.config import GrpoConfig, PolicyTrainingConfig, PpoConfig, check_rounds
from easydistill.methods.policy.measure import zero_variance
from easydistill.methods.policy.rows import GroupOrder

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])


def by_definition(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = Σ_l (γλ)^l δ_{t+l}, summed directly."""
    ahead = [*values[1:], 0.0]
    deltas = [r + gamma * after - v for r, after, v in zip(rewards, ahead, values, strict=True)]
    return [
        sum((gamma * lam) ** (at - start) * deltas[at] for at in range(start, len(deltas)))
        for start in range(len(deltas))
    ]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_advantages_are_gae_and_do_not_see_padding(gamma: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    found = ppo.advantages(rewards * MASK, values, MASK, gamma, lam)
    for row, length in ((0, 3), (1, 4)):
        wanted = by_definition(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam)
        assert found[row, :length].tolist() == pytest.approx(wanted)
    assert not found[0, 3:].any()
    assert not found[2].any()


def test_with_lambda_one_returns_are_the_remaining_rewards() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0, 9.0]]) * MASK[:1]
    values = torch.tensor([[5.0, -1.0, 0.5, 7.0]])
    returns = ppo.advantages(rewards, values, MASK[:1], 1.0, 1.0) + values
    assert returns[0, :3].tolist() == [6.0, 5.0, 3.0]


def test_the_score_is_paid_at_the_last_token_and_kl_at_each() -> None:
    old, reference = torch.full((3, 4), -1.0), torch.full((3, 4), -1.5)
    found = ppo.token_rewards(torch.tensor([1.0, 2.0, 3.0]), old, reference, MASK, 0.2)
    assert found[0].tolist() == pytest.approx([-0.1, -0.1, 0.9, 0.0])
    assert found[1].tolist() == pytest.approx([-0.1, -0.1, -0.1, 1.9])
    assert not found[2].any(), "an empty answer has no token to be paid at"


def test_whitened_advantages_have_mean_0_and_deviation_1() -> None:
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)) * 3 + 5
    found = ppo.whiten(values, MASK)[MASK.bool()]
    assert found.mean().item() == pytest.approx(0, abs=1e-6)
    assert found.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert not ppo.whiten(values, MASK)[~MASK.bool()].any()


def test_the_value_loss_takes_the_larger_error() -> None:
    old, values, returns = (torch.tensor([[value]]) for value in (0.0, 1.0, 1.0))
    on = torch.ones(1, 1)
    # The value is right, but too far from the old one: the clipped value counts.
    assert ppo.value_loss(values, old, returns, on, 0.2).item() == pytest.approx(0.5 * 0.8**2)
    assert ppo.value_loss(values, old, -returns, on, 0.2).item() == pytest.approx(0.5 * 2**2)
    assert ppo.value_loss(values, old, returns, on * 0, 0.2).item() == 0


def test_explained_variance() -> None:
    returns = torch.tensor([[1.0, 2.0, 3.0, 9.0], [4.0, 5.0, 6.0, 7.0], [0.0] * 4])
    assert ppo.explained_variance(returns, returns, MASK) == 1
    assert ppo.explained_variance(torch.full((3, 4), 8.0), returns, MASK) == pytest.approx(0)
    assert ppo.explained_variance(-returns, returns, MASK) == pytest.approx(-3)
    assert ppo.explained_variance(returns, torch.ones(3, 4), MASK) is None


# --- order ------------------------------------------------------------------------------------------------------


def test_groups_are_contiguous_and_rounds_repeat_as_often_as_they_are_read() -> None:
    order = GroupOrder(rows=10, prompts=4, group=3, seed=5, repeats=2)
    indices = list(order)
    assert len(indices) == len(order) == 3 * 4 * 3 * 2
    rounds = [indices[at : at + 12] for at in range(0, len(indices), 12)]
    assert all(one == two for one, two in zip(rounds[::2], rounds[1::2], strict=True))
    assert all(each[at] == each[at + 1] == each[at + 2] for each in rounds for at in range(0, 12, 3))
    assert min(Counter(indices).values()) == 6, "every prompt is used"
    order.set_epoch(1)
    assert list(order) != indices
    order.set_epoch(0)
    assert list(order) == indices


# --- alarms -----------------------------------------------------------------------------------------------------


def heldout(alarms: Alarms, step: int, reward: float, accuracy: float) -> list[str]:
    return alarms.heldout(step, {"reward": reward, "verified_accuracy": accuracy, "verified": 100})


def test_a_reward_that_rises_while_answers_get_worse_is_reported_once() -> None:
    alarms = Alarms()
    assert not heldout(alarms, 0, 0.2, 0.5)
    assert not heldout(alarms, 10, 0.4, 0.6)
    assert not heldout(alarms, 20, 0.5, 0.55), "within chance"
    assert not heldout(alarms, 30, 0.3, 0.2), "both fell"
    (sentence,) = heldout(alarms, 40, 0.9, 0.3)
    assert "step 10" in sentence
    assert "from 60.0% to 30.0%" in sentence
    assert not heldout(alarms, 50, 1.0, 0.1)
    assert alarms.raised["reward_hacking"]["step"] == 40


def test_too_few_verified_answers_raise_no_alarm() -> None:
    alarms = Alarms()
    few = {"verified": 10}
    assert not alarms.heldout(0, {"reward": 0.2, "verified_accuracy": 0.6, **few})
    assert not alarms.heldout(10, {"reward": 0.9, "verified_accuracy": 0.3, **few}), "within chance"


def test_alarms_continue_from_a_checkpoint() -> None:
    first = Alarms()
    first.step(1, {"entropy": 2.0})
    first.step(2, {"entropy": 1.9, "ended": 0.1})
    second = Alarms()
    second.restore(json.loads(json.dumps(first.state())))
    assert second.raised == first.raised
    assert second.step(3, {"entropy": 0.1, "ended": 0.1}), "the entropy of the first step is remembered"
    assert second.raised["cut_off"]["step"] == 2


def test_other_alarms() -> None:
    alarms = Alarms()
    assert not alarms.step(1, {"entropy": 2.0, "ended": 1.0, "zero_variance_groups": 0.5})
    raised = alarms.step(2, {"entropy": 0.1, "ended": 0.4, "zero_variance_groups": 0.9})
    assert [word for word in ("entropy", "groups", "cut off") if any(word in each for each in raised)] == [
        "entropy", "groups", "cut off",
    ]  # fmt: skip
    assert not alarms.step(3, {"entropy": 0.1, "ended": 0.4, "zero_variance_groups": 0.9})
    assert not Alarms().heldout(1, {"reward": 1.0}), "without known answers there is nothing to compare"
    assert standard_error(1.0, 4) == 0.125
    assert standard_error(0.5, 100) == pytest.approx(math.sqrt(0.25 / 100))


def test_an_entropy_of_0_is_no_baseline() -> None:
    alarms = Alarms()
    for entropy in (0.0, 2.0, 1.0):
        assert not alarms.step(1, {"entropy": entropy})
    assert alarms.step(2, {"entropy": 0.01})


def test_answers_without_any_reward_are_reported() -> None:
    alarms = Alarms()
    assert not alarms.step(1, {"reward/abstained": 0.5})
    assert "judged by no reward" in alarms.step(2, {"reward/abstained": 0.75})[0]


def test_groups_that_teach_nothing() -> None:
    unknown = float("nan")
    assert zero_variance([1, 1, 0, 1], 2) == 0.5
    assert zero_variance([unknown, unknown, 0, 1], 2) == 0.5, "a group without rewards teaches nothing"
    assert zero_variance([unknown, 1, 0, 1], 2) == 0.5, "a single judged answer has nothing to be compared with"
    assert zero_variance([0.1 + 0.2, 0.3, 0.3, 0.3], 4) == 1


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "training", "word"),
    [
        (GrpoConfig(num_generations=3), {}, "whole groups of 3"),
        (GrpoConfig(max_new_tokens=1024), {}, "no room for prompts"),
        (PpoConfig(), {}, None),
        (GrpoConfig(num_generations=16), {"gradient_accumulation_steps": 2}, None),
    ],
)
def test_rounds_hold_whole_groups(policy: Any, training: dict[str, Any], word: str | None) -> None:
    config = PolicyTrainingConfig(**training)
    if word is None:
        check_rounds(policy, config)
    else:
        with pytest.raises(Unfit, match=word):
            check_rounds(policy, config)
