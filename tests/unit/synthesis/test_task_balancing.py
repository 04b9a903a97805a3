"""Balancing: targets are met if there are enough rows, and no cap is exceeded."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from easydistill.contracts.operator import answer_with
from easydistill.data.records import Sample
from easydistill.errors import DataError
from easydistill.synthesis.operators import OPERATORS
from easydistill.synthesis.operators.task_balancing import TARGETS, TASKS, Config, balance, targets_of


def row(identity: str, task: Any, prompt: str | None = None) -> Sample:
    return Sample(identity, ({"role": "user", "content": prompt or identity},), {"task": task, "kept": 1})


def origin(sample: Sample) -> str:
    return str(sample.meta.get("repeats", sample.id))


def test_the_tasks() -> None:
    assert len(TASKS) == 32
    assert sum(Fraction(str(part)) for part in TARGETS.values()) == 1
    assert [TARGETS[task] for task in ("Math", "Reasoning", "Code Generation", "Code Debug", "Others")] == [
        0.167,
        0.167,
        0.083,
        0.083,
        0.041,
    ]
    assert set(TARGETS.values()) == {0.167, 0.083, 0.041, 0.017}


def test_targets_are_rounded_down_exactly() -> None:
    targets = targets_of(Config(total=1000), dict.fromkeys(TASKS, 1))
    assert targets == {task: round(1000 * part) for task, part in TARGETS.items()}
    assert sum(targets_of(Config(total=999), dict.fromkeys(TASKS, 1)).values()) < 999
    # 0.29 · 100 is 28.999… as a binary number.
    assert targets_of(Config(targets={"a": 0.29, "b": 0.71}, total=100), {"a": 1, "b": 1}) == {"a": 29, "b": 71}


def test_shares_of_empty_tasks_go_to_the_others() -> None:
    config = Config(targets={"a": 0.5, "b": 0.3, "c": 0.2}, total=80)
    assert targets_of(config, {"a": 9, "b": 9, "c": 0}) == {"a": 50, "b": 30, "c": 0}


tasks = st.sampled_from(["Math", "Reasoning", "Art", "Others", "Unknown", None])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(tasks, max_size=60),
    st.dictionaries(
        st.sampled_from(["Math", "Reasoning", "Art", "Others"]), st.sampled_from([0, 0.1, 0.25, 1]), min_size=1
    ),
    st.none() | st.integers(1, 80),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_invariants(
    labels: list[str | None], parts: dict[str, float], total: int | None, copies: int, shuffler: random.Random
) -> None:
    if not any(parts.values()):
        parts["Math"] = 1
    config = Config(targets=parts, total=total, max_copies=copies)
    rows = [row(str(number), label, f"p{number // 2}") for number, label in enumerate(labels)]
    if rows and not any(labels):
        with pytest.raises(DataError, match="task_labelling writes it"):
            balance(config, rows)
        return
    result = balance(config, rows)
    # Every row is either taken, once or more, or rejected.
    taken = Counter(map(origin, result.accepted))
    assert sorted([*taken, *(each.id for each in result.rejected)]) == sorted(each.id for each in rows)
    assert (
        len({each.id for each in result.accepted} | {each.id for each in rows}) == len(rows) + result.facts["repeated"]
    )
    assert result.entered == len(result.accepted) + len(result.rejected)
    # Caps.
    assert all(count <= copies for count in taken.values())
    assert len(result.accepted) <= (total if total is not None else len(rows))
    available = Counter(label for label in labels if label and parts.get(label))
    by_task = Counter(each.meta["task"] for each in result.accepted)
    targets = targets_of(config, {task: available[task] for task, part in parts.items() if part})
    for task, target in targets.items():
        # As many as wanted, or as possible.
        assert by_task[task] == min(target, copies * available[task])
        # No row is repeated while another is not taken, and copies are spread evenly.
        times = [taken[each.id] for each in rows if each.meta["task"] == task]
        assert not times or max(times) - min(times) <= 1
        fact = result.facts["tasks"][task]
        assert fact["missing"] == target - by_task[task]
        assert fact["repeated"] == by_task[task] - sum(1 for count in times if count)
    assert set(by_task) <= set(targets)
    # The order of rows has no effect.
    shuffled = rows[:]
    shuffler.shuffle(shuffled)
    again = balance(config, shuffled)
    assert {each.id for each in again.accepted} == {each.id for each in result.accepted}
    assert again.facts == result.facts


def test_other_prompts_come_before_other_answers_to_the_same_one() -> None:
    rows = [row(f"same-{number}", "Math", "one prompt") for number in range(20)]
    rows += [row(f"other-{number}", "Math") for number in range(4)]
    for seed in range(5):
        result = balance(Config(targets={"Math": 1}, total=5, seed=seed), rows)
        assert len({each.prompt_hash for each in result.accepted}) == 5


def test_seeds_draw_differently() -> None:
    rows = [row(str(number), "Math") for number in range(50)]
    draws = {
        tuple(each.id for each in balance(Config(targets={"Math": 1}, total=10, seed=seed), rows).accepted)
        for seed in range(6)
    }
    assert len(draws) == 6


def test_copies_have_ids_of_their_own_and_name_their_original() -> None:
    rows = [row("a", "Math"), row("a-repeat-1", "Math")]
    result = balance(Config(targets={"Math": 1}, total=6, max_copies=3), rows)
    assert [each.id for each in result.accepted] == [
        "a", "a-repeat-1-", "a-repeat-2", "a-repeat-1", "a-repeat-1-repeat-1", "a-repeat-1-repeat-2",
    ]  # fmt: skip
    assert [origin(each) for each in result.accepted] == ["a"] * 3 + ["a-repeat-1"] * 3
    assert all(each.meta["kept"] == 1 for each in result.accepted)
    assert result.facts["repeated"] == 4


def test_reasons() -> None:
    rows = [row("1", "Math"), row("2", "Math"), row("3", "Cooking"), row("4", None), row("5", 7), row("6", "Art")]
    result = balance(Config(targets={"Math": 0.5, "Art": 0}, total=1), rows)
    reasons = {each.id: each.reason for each in result.rejected if each.id > "2"}
    assert reasons == {"3": "task_not_wanted", "4": "no_task", "5": "no_task", "6": "task_not_wanted"}
    surplus = next(each for each in result.rejected if each.id < "3")
    assert (surplus.reason, surplus.detail) == ("over_target", "1 of 2 rows are taken for Math")


def test_bad_targets() -> None:
    for targets in ({}, {"a": -1}, {"a": 0}, {"a": float("nan")}):
        with pytest.raises(ValidationError):
            Config(targets=targets)


def test_it_runs_as_an_operator_with_the_usual_targets() -> None:
    rows = [row(f"{task}-{number}", task) for task in TASKS for number in range(40)]
    module = OPERATORS.module("task_balancing")
    steps = module.run(Config(total=200), rows, None)
    result = answer_with(steps, lambda asks: pytest.fail("it asked"))
    counts = Counter(each.meta["task"] for each in result.accepted)
    assert counts == {task: int(200 * Fraction(str(part))) for task, part in TARGETS.items()}
    assert result.facts["repeated"] == 0
