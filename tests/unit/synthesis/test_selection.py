"""Selection by score: only scored and correct rows, and as many of each bin as configured."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from easydistill.contracts.operator import answer_with
from easydistill.data.records import Sample
from easydistill.data.spool import Spool
from easydistill.synthesis.operators import OPERATORS, instruction_selection
from easydistill.synthesis.operators.cot_selection import Config, Mix, select


def cot(identity: str, rv: Any, cd: Any, correct: Any = True) -> Sample:
    messages = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})
    return Sample(identity, messages, {"rv": rv, "cd": cd, "correct": correct})  # type: ignore[arg-type]


def instruction(identity: str, i: Any, h: Any, g: Any, c: Any) -> Sample:
    meta = {"informativeness": i, "helpfulness": h, "generalisation": g, "correctness": c}
    return Sample(identity, ({"role": "user", "content": "q"},), meta)


def test_thresholds_as_easydistill_1_shipped_them() -> None:
    rows = [cot(f"{rv}-{cd}", rv, cd) for rv in range(10) for cd in range(10)]
    result = select(Config(rv=(3, 5), cd=(4, 4)), rows)
    assert [each.id for each in result.accepted] == ["3-4", "4-4", "5-4"]
    assert result.facts["dropped"] == {"verbosity": 70, "difficulty": 27}
    assert next(each for each in result.rejected if each.id == "9-4").detail == "rv 9 is outside 3 to 5"


@pytest.mark.parametrize(
    ("rv", "cd", "correct", "detail"),
    [
        (None, 4, True, "there is no rv; cot_scoring writes it"),
        ("4", 4, True, "rv is '4', not a score of 0 to 9; cot_scoring writes it"),
        (True, 4, True, "rv is True, not a score of 0 to 9; cot_scoring writes it"),
        (4, 10, True, "cd is 10, not a score of 0 to 9; cot_scoring writes it"),
        (4, -1, True, "cd is -1, not a score of 0 to 9; cot_scoring writes it"),
        (4, float("nan"), True, "cd is nan, not a score of 0 to 9; cot_scoring writes it"),
        (
            4,
            4,
            None,
            'there is no correct; cot_scoring writes it, or set "unjudged": "keep" if all chains were verified',
        ),
        (4, 4, "yes", "correct is 'yes', not 0 or 1; cot_scoring writes it"),
        (4, 4, 2, "correct is 2, not 0 or 1; cot_scoring writes it"),
        (4, 4, 0.5, "correct is 0.5, not 0 or 1; cot_scoring writes it"),
    ],
)
def test_invalid_scores_are_rejected(rv: Any, cd: Any, correct: Any, detail: str) -> None:
    result = select(Config(), [cot("1", rv, cd, correct)])
    assert [(each.reason, each.detail) for each in result.rejected] == [("not_scored", detail)]


def test_published_chains_that_were_all_verified_need_no_mark() -> None:
    rows = [cot("a", 4, 4, None), cot("b", 4, 4, 0), cot("c", 4, 4, "yes"), cot("d", None, 4, None)]
    result = select(Config(unjudged="keep"), rows)
    assert [each.id for each in result.accepted] == ["a"]
    assert [each.reason for each in result.rejected] == ["incorrect", "not_scored", "not_scored"]


def test_incorrect_rows_are_rejected() -> None:
    rows = [cot("a", 4, 4, False), cot("b", 4, 4, 0), cot("c", 4, 4, 1), cot("d", 4.5, 3.2)]
    result = select(Config(), rows)
    assert [each.id for each in result.accepted] == ["c", "d"]
    assert result.facts == {
        "correct_and_in_range": 2,
        "scores": {
            "rv, before": {"4": 4},
            "rv, after": {"4": 2},
            "cd, before": {"3": 1, "4": 3},
            "cd, after": {"3": 1, "4": 1},
        },
        "dropped": {"incorrect": 2},
    }


score = st.integers(0, 9)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(score, score, st.booleans()), max_size=40),
    st.tuples(*[st.integers(0, 8)] * 3),
    st.randoms(use_true_random=False),
)
def test_the_mixture(
    scores: list[tuple[int, int, bool]], counts: tuple[int, int, int], shuffler: random.Random
) -> None:
    rows = [cot(str(number), *each) for number, each in enumerate(scores)]
    config = Config(rv=(1, 9), mix=Mix(counts=counts))
    result = select(config, rows)
    kept = {each.id for each in result.accepted}
    assert result.entered == len(rows)
    assert sorted([*kept, *(each.id for each in result.rejected)]) == sorted(each.id for each in rows)
    for low, high, target, wanted, fact in zip(
        (0, 3, 6), (3, 6, 10), (2, 5, 8), counts, result.facts["bins"], strict=True
    ):
        fitting = [
            each for each in rows if each.meta["correct"] and each.meta["rv"] >= 1 and low <= each.meta["cd"] < high
        ]
        taken = [abs(each.meta["rv"] - target) for each in fitting if each.id in kept]
        others = [abs(each.meta["rv"] - target) for each in fitting if each.id not in kept]
        # As many as wanted or available, nearest first; the number missing is reported.
        assert len(taken) == min(wanted, len(fitting))
        assert not taken or not others or max(taken) <= min(others)
        assert (fact["cd"], fact["rv_target"], fact["wanted"]) == ([low, high], target, wanted)
        assert (fact["available"], fact["taken"]) == (len(fitting), len(taken))
        assert fact["missing"] == wanted - len(taken)
    assert {each.meta["correct"] for each in result.accepted} <= {True}
    shuffled = rows[:]
    shuffler.shuffle(shuffled)
    again = select(config, shuffled)
    assert {each.id for each in again.accepted} == kept
    assert again.facts == {**result.facts, "dropped": again.facts["dropped"]}


def test_shares_of_a_total() -> None:
    rows = [cot(f"{cd}-{number}", 5, cd) for cd in range(10) for number in range(30)]
    result = select(Config(mix=Mix(shares=(0.1, 0.2, 0.7), total=100)), rows)
    assert [fact["taken"] for fact in result.facts["bins"]] == [10, 20, 70]
    assert result.facts["bins"][2]["mean_rv_distance"] == 3.0


def test_rows_outside_the_mixture_are_rejected_with_the_reason() -> None:
    rows = [cot("low", 5, 1), cot("far", 9, 4), cot("near", 5, 4)]
    result = select(Config(mix=Mix(bins=(3, 6), rv=(5,), counts=(1,))), rows)
    assert [each.id for each in result.accepted] == ["near"]
    assert [(each.id, each.reason, each.detail) for each in result.rejected] == [
        ("low", "difficulty", "cd 1 is in no bin of [3, 6]"),
        ("far", "not_selected", "rv 9: 1 of 2 rows with 3 ≤ cd < 6 are nearer to rv 5, or as near"),
    ]


def test_rows_on_disk_stay_there_and_give_the_same_result() -> None:
    rows = [cot(f"{number}", number % 10, number % 7, number % 5 != 0) for number in range(60)]
    config = Config(rv=(1, 9), mix=Mix(bins=(0, 3, 5), rv=(2, 5), counts=(4, 3)))
    held, found = select(config, rows), select(config, Spool(rows))
    assert isinstance(found.accepted, Spool)
    assert isinstance(found.rejected, Spool)
    assert (list(found.accepted), list(found.rejected)) == (held.accepted, held.rejected)
    assert found.facts == held.facts
    assert [len(held.accepted), len(held.rejected)] == [7, 53]


@pytest.mark.parametrize(
    ("mix", "problem"),
    [
        ({}, "number of rows is ambiguous"),
        ({"counts": [1, 1, 1], "total": 3}, "number of rows is ambiguous"),
        ({"counts": [1, 1, 1], "shares": [0, 0, 1], "total": 3}, "number of rows is ambiguous"),
        ({"shares": [0.5, 0.25, 0.25]}, "number of rows is ambiguous"),
        ({"shares": [0.5, 0.5, 0.5], "total": 3}, "add up to more than 1"),
        ({"counts": [1, 1]}, "3 bins but 2 counts"),
        ({"bins": [0, 5, 10], "counts": [1, 1]}, "2 bins but 3 rv"),
        ({"bins": [0, 6, 3, 10], "counts": [1, 1, 1]}, "not ascending"),
        ({"bins": [0, 3, 6, 11], "counts": [1, 1, 1]}, "less than or equal to 10"),
        ({"rv": [2, 5, 10], "counts": [1, 1, 1]}, "less than or equal to 9"),
        ({"counts": [1, 1, -1]}, "greater than or equal to 0"),
    ],
)
def test_invalid_mixtures(mix: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Config.model_validate({"mix": mix})


@pytest.mark.parametrize("bounds", [[5, 3], [-1, 3], [0, 10], [1], [True, 3]])
def test_invalid_ranges(bounds: list[int]) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate({"rv": bounds})


def test_instructions_by_threshold() -> None:
    rows = [
        instruction("good", 7, 8, 5, 1),
        instruction("dull", 4, 8, 3, 1),
        instruction("wrong", 9, 9, 9, 0),
        instruction("unjudged", 9, 9, 9, None),
        instruction("malformed", 9, "9", 9, True),
    ]
    result = instruction_selection.select(instruction_selection.Config(), rows)
    assert [each.id for each in result.accepted] == ["good"]
    assert {each.id: (each.reason, each.detail) for each in result.rejected} == {
        "dull": ("low_informativeness", "informativeness 4 is below 5; generalisation 3 is below 5"),
        "wrong": ("incorrect", "the answer was judged wrong"),
        "unjudged": ("not_scored", "there is no correctness; instruction_scoring writes it"),
        "malformed": ("not_scored", "helpfulness is '9', not a score of 0 to 9; instruction_scoring writes it"),
    }
    loose = instruction_selection.Config(informativeness=0, helpfulness=0, generalisation=0, correct_only=False)
    kept = instruction_selection.select(loose, rows).accepted
    assert [each.id for each in kept] == ["good", "dull", "wrong", "unjudged"]


@settings(max_examples=100)
@given(st.lists(st.tuples(score, score, score, st.booleans()), max_size=20), score, score, score)
def test_instructions_that_stay_reach_every_threshold(
    scores: list[tuple[int, int, int, bool]], i: int, h: int, g: int
) -> None:
    rows = [instruction(str(number), *each) for number, each in enumerate(scores)]
    config = instruction_selection.Config(informativeness=i, helpfulness=h, generalisation=g)
    result = instruction_selection.select(config, rows)
    expected = [str(number) for number, (a, b, c, right) in enumerate(scores) if right and a >= i and b >= h and c >= g]
    assert [each.id for each in result.accepted] == expected
    assert len(result.accepted) + len(result.rejected) == result.entered == len(rows)


@pytest.mark.parametrize("name", ["cot_selection", "instruction_selection"])
def test_they_run_as_operators_and_ask_no_model(name: str) -> None:
    module = OPERATORS.module(name)
    steps = module.run(module.Config(), [cot("1", 4, 4)], None)
    result = answer_with(steps, lambda asks: pytest.fail("it asked"))
    assert result.entered == 1
