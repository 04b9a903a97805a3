"""Intervals, tests and pass@k of the job `evaluate`, against other ways to compute them."""

from __future__ import annotations

import itertools
import math
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easydistill.task_evaluation.results import gap_closed
from easydistill.task_evaluation.statistics import bootstrap, compare, mcnemar, pass_at_k, sign_flips


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_reply(case: tuple[int, int, int]) -> None:
    samples, right, k = case
    replies = [True] * right + [False] * (samples - right)
    subsets = list(itertools.combinations(replies, k))
    assert pass_at_k(samples, right, k) == pytest.approx(fmean(any(subset) for subset in subsets))


def test_pass_at_1_is_the_mean() -> None:
    assert [pass_at_k(8, right, 1) for right in range(9)] == pytest.approx([right / 8 for right in range(9)])
    with pytest.raises(ValueError, match="pass@9 of 8"):
        pass_at_k(8, 2, 9)


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_two_sided_binomial_test(gained: int, lost: int) -> None:
    flips = gained + lost
    chances = [math.comb(flips, k) / 2**flips for k in range(flips + 1)]
    # Both tails, as the null distribution is symmetric.
    expected = sum(chance for k, chance in enumerate(chances) if abs(2 * k - flips) >= abs(gained - lost))
    assert mcnemar(gained, lost) == pytest.approx(min(1.0, expected))


def test_mcnemar_of_known_tables() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 6) == pytest.approx(2 / 64)
    assert mcnemar(6, 0) == mcnemar(0, 6)


def test_the_bootstrap_interval_is_near_the_normal_one() -> None:
    values = [1.0] * 300 + [0.0] * 700
    found = bootstrap(values)
    error = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert found.mean == pytest.approx(0.3)
    assert found.low == pytest.approx(0.3 - error, abs=0.004)
    assert found.high == pytest.approx(0.3 + error, abs=0.004)
    assert bootstrap(values) == found, "seeded"


def test_the_bootstrap_covers_the_true_mean() -> None:
    generator = random.Random(3)
    hits = 0
    for _ in range(60):
        found = bootstrap([float(generator.random() < 0.4) for _ in range(80)])
        hits += found.low <= 0.4 <= found.high
    assert hits >= 52, "95 % of 60 are 57"


def test_ratios_are_sums_over_sums_not_means_of_ratios() -> None:
    assert bootstrap([1.0, 0.0], [1.0, 3.0]).mean == 0.25


def test_one_problem_has_no_interval() -> None:
    found = bootstrap([1.0])
    assert (found.low, found.high) == (1.0, 1.0)


def test_right_or_wrong_is_compared_by_mcnemar_and_means_by_permutation() -> None:
    model, baseline = [1.0, 1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0, 1.0]
    found = compare(model, baseline)
    assert (found.gained, found.lost, found.test) == (2, 1, "McNemar, exact")
    assert found.p == mcnemar(2, 1)
    assert found.difference.mean == pytest.approx(0.2)
    soft = compare([0.5, 1.0], [0.25, 1.0])
    assert soft.test == "paired permutation"
    assert (soft.gained, soft.lost) == (1, 0)


def test_the_permutation_test_is_near_the_exact_one() -> None:
    differences = [0.5, 0.25, 0.5, -0.25, 0.75, 0.5, 0.0, 0.25]
    moved = [value for value in differences if value]
    sums = [
        sum(sign * value for sign, value in zip(signs, moved, strict=True))
        for signs in itertools.product((1, -1), repeat=len(moved))
    ]
    exact = fmean(abs(total) >= abs(sum(moved)) - 1e-12 for total in sums)
    assert sign_flips(differences) == pytest.approx(exact, abs=0.02)
    assert sign_flips([0.0, 0.0]) == 1.0


def test_the_gap_is_closed_between_student_and_teacher() -> None:
    assert gap_closed(0.2, 0.5, 0.8) == pytest.approx(0.5)
    assert gap_closed(0.2, 0.1, 0.8) == pytest.approx(-1 / 6)
    assert gap_closed(0.5, 0.6, 0.5) is None, "there is no gap"
    assert gap_closed(0.6, 0.7, 0.5) is None, "the student was the better one"


@pytest.mark.parametrize("count", [2, 5, 100])
def test_scores_that_are_all_alike_have_the_exact_interval_of_a_share(count: int) -> None:
    none, every = bootstrap([0.0] * count), bootstrap([1.0] * count)
    # Clopper and Pearson: the share at which none in `count` has a chance of 2.5 %.
    assert (1 - none.high) ** count == pytest.approx(0.025)
    assert (none.mean, none.low) == (0.0, 0.0)
    assert (every.low, every.mean, every.high) == pytest.approx((1 - none.high, 1.0, 1.0))


def test_models_that_never_differ_may_still_differ_on_other_problems() -> None:
    found = compare([1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]).difference
    assert found.mean == 0
    assert found.low == -found.high
    assert found.high == pytest.approx(1 - 0.025**0.25)


def test_scores_beyond_the_bounds_are_left_without_width() -> None:
    assert bootstrap([30.0, 30.0]).as_record() == {"mean": 30.0, "low": 30.0, "high": 30.0}
