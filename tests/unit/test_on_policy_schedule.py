"""When rollouts begin, how long they may be, which divergence suits a student, and what of it is part of identities."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from easydistill.methods.on_policy.alarms import Alarms
from easydistill.methods.on_policy.config import OnPolicyConfig
from easydistill.methods.on_policy.fit import answers_figures, fitting
from easydistill.methods.on_policy.schedule import Schedule


def schedule(total: int, **values: Any) -> Schedule:
    return Schedule(OnPolicyConfig(max_new_tokens=100, **values), total)


def test_without_settings_every_step_is_like_the_others() -> None:
    found = schedule(10, steps_per_rollout=4, rollout_share=0.3)
    assert [list(found.round_from(step)) for step in (0, 4, 8)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert {found.longest(step) for step in range(10)} == {100}
    assert {found.rollout_share(step) for step in range(10)} == {0.3}


def test_no_round_of_answers_begins_before_rollouts_do() -> None:
    found = schedule(10, kd_steps=3, steps_per_rollout=2)
    assert [list(found.round_from(step)) for step in (0, 2, 3, 9)] == [[0, 1], [2], [3, 4], [9]]
    assert [found.rollout_share(step) for step in range(5)] == [0, 0, 0, 0.5, 0.5]


def test_the_limit_grows_evenly_over_its_share_of_the_steps_with_rollouts() -> None:
    found = schedule(24, kd_steps=4, max_new_tokens_start=20, max_new_tokens_growth=0.5)
    assert [found.longest(step) for step in (0, 4, 5, 9, 13, 14, 23)] == [20, 20, 28, 60, 92, 100, 100]


USUAL = {"repetition": 0.05, "ended": 0.9}
GOOD = {"entropy": 2.6, "repetition": 0.1, "ended": 0.7}


@pytest.mark.parametrize(
    ("changes", "answers", "beta", "words"),
    [
        ({}, USUAL, 0.5, "can write (entropy 2.6 nats, 10% repeated, 70% ended)"),
        ({"entropy": 4.2}, USUAL, 0.0, "entropy is 4.2 nats a token (above 3.5)"),
        ({"repetition": 0.4}, USUAL, 0.0, "40% of 4-grams are repeated (the teacher's answers: 5%)"),
        ({"repetition": 0.4}, USUAL | {"repetition": 0.3}, 0.5, "can write"),
        ({"repetition": 0.4}, {}, 0.0, "repeated"),
        ({"ended": 0.25}, USUAL, 0.0, "25% of answers ended (the teacher's: 90%)"),
        # The limit cuts the teacher's answers, too; or there are none.
        ({"ended": 0.0}, USUAL | {"ended": 0.3}, 0.5, "can write"),
        ({"ended": 0.0}, {}, 0.5, "can write"),
        ({"ended": 0.0, "entropy": 5.0}, USUAL, 0.0, "(above 3.5) and 0% of answers ended"),
    ],
)
def test_a_student_that_cannot_write_gets_forward_kl(
    changes: dict[str, float], answers: dict[str, float], beta: float, words: str
) -> None:
    found = fitting(GOOD | changes, answers)
    assert found.beta == beta
    assert words in found.told


def test_the_teachers_answers_are_judged_as_far_as_the_student_may_write() -> None:
    answers = [[5, 6, 2], [*range(10, 20), 2], [7, 8]]
    assert answers_figures(answers, frozenset({2}), 11) == {"repetition": 0, "ended": pytest.approx(2 / 3)}
    assert answers_figures(answers, frozenset({2}), 10)["ended"] == pytest.approx(1 / 3)
    assert answers_figures([[7] * 13], frozenset({2}), 4)["repetition"] == 0
    assert answers_figures([], frozenset({2}), 4) == {}


def test_answers_whose_limit_grows_are_not_compared() -> None:
    """Longer answers repeat more. The alarm begins with those of full length."""
    good = GOOD | {"reverse_kl": 1.3}
    worse = good | {"reverse_kl": 0.8, "repetition": 0.9}
    grown, growing = Alarms(), Alarms()
    for step in range(6):
        grown.step(step, good if step < 3 else worse)
        growing.step(step, good if step < 3 else worse, comparable=step >= 3)
    assert "gamed" in grown.raised
    assert not growing.raised
    assert growing.step(1, GOOD | {"entropy": 4.0}, comparable=False)


def test_nobody_is_told_to_set_what_is_chosen() -> None:
    (told,) = Alarms(fits_beta=True).step(1, GOOD | {"entropy": 4.0})
    assert "on_policy.beta" not in told
    (told,) = Alarms().step(1, GOOD | {"entropy": 4.0})
    assert "on_policy.beta to 0 and on_policy.rollout_temperature" in told


@pytest.mark.parametrize("values", [{"objective": "sampled_reverse_kl"}, {"kl_mix": 0.5}, {}])
def test_what_is_advised_can_be_set(values: dict[str, Any]) -> None:
    """No field that the objective refuses."""
    chosen = OnPolicyConfig(**values)
    alarms = Alarms(
        fits_beta=chosen.fits_beta, whole=chosen.objective == "generalized_jsd", mixes=chosen.kl_mix is not None
    )
    told = alarms.step(1, GOOD | {"entropy": 4.0, "reverse_kl": 1.3})
    for step in range(2, 7):
        told += alarms.step(step, GOOD | {"reverse_kl": 1.3 if step < 4 else 0.5, "repetition": 0.1 * step})
    assert len(told) == 2
    changes = {"kd_steps": 2, "sft_steps": 2, "beta": 0.0, "kl_mix": 1.0, "rollout_temperature": 0.7}
    advised = [name for name in changes if f"on_policy.{name}" in " ".join(told)]
    assert advised
    for name in advised:
        OnPolicyConfig(**{**values, name: changes[name]})


def test_a_given_beta_has_the_identity_that_it_had() -> None:
    """The default has become another one: runs that gave β stay finished, others run again."""
    former = {
        "objective": "generalized_jsd", "rollout_share": 0.5, "beta": 0.5, "temperature": 1.0, "max_new_tokens": 256,
        "ratio_clip": 0.2, "steps_per_rollout": 1, "sft_steps": 0,
    }  # fmt: skip
    assert OnPolicyConfig(beta=0.5).identity() == former
    assert OnPolicyConfig(beta=0.0).identity() == former | {"beta": 0.0}
    assert OnPolicyConfig().identity()["beta"] not in {0.5, 0.0, None}
    # β did nothing there, so nothing has changed.
    sampled = OnPolicyConfig(objective="sampled_reverse_kl")
    assert sampled.identity() == former | {"objective": "sampled_reverse_kl"}
    assert OnPolicyConfig(objective="sampled_reverse_kl", beta=0.5).identity() == sampled.identity()
    assert OnPolicyConfig(kl_mix=0.3).identity() == former | {"kl_mix": 0.3}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"beta": 0.5, "kl_mix": 0.5}, "both name the divergence"),
        ({"max_new_tokens": 64, "max_new_tokens_start": 64}, "is not below `max_new_tokens`"),
        ({"max_new_tokens_growth": 0.2}, "has no effect alone"),
        ({"objective": "sampled_reverse_kl", "kl_mix": 0.5}, "`kl_mix` has no effect"),
        ({"objective": "sampled_reverse_kl", "beta_answers": 0.0}, "`beta_answers` has no effect"),
        ({"objective": "sampled_reverse_kl", "kd_steps": 4}, "`kd_steps` has no effect"),
        ({"objective": "sampled_reverse_kl", "beta": 0.0}, "`beta` has no effect"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        OnPolicyConfig(**values)
