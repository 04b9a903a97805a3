"""`verify`: right is right, anything else wrong, and a row that cannot be judged is not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.rollouts import after, in_threads, rollout

from easydistill.errors import DataError, MissingExtra
from easydistill.rewards import Reward, RewardContext
from easydistill.rewards.verify import Config, known_answer, make

pytest.importorskip("math_verify", reason="needs the extra 'synth'")


@pytest.fixture(scope="module")
def verify() -> Iterator[Reward]:
    reward = make(Config(seconds=60), RewardContext())
    yield reward
    reward.close()


def test_right_wrong_and_unknown(verify: Reward) -> None:
    assert verify(
        [
            rollout("6 · 7 = 42. The answer is 42.", answer="42"),
            rollout(r"\boxed{\frac{84}{2}}", answer=42),
            rollout("#### 42", answer="6 × 7 = 42\n#### 42"),
            rollout(r"\boxed{x^2+2x+1}", answer="(x+1)^2"),
            rollout("The answer is 41.", answer="42"),
            rollout("I do not know.", answer="42"),
            rollout("", answer="42"),
            rollout("42"),
            rollout("42", answer=None),
            rollout("42", answer="  "),
        ]
    ) == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, None, None, None]
    assert verify([]) == []


@pytest.mark.parametrize(
    ("known", "reply"),
    [
        ("Paris", "Paris"),
        ("yes", "Yes."),
        ("C", "C"),
        ("B", "(B)"),
        ("C", "C) Paris"),
        ("[1, 2, 3]", "[1, 2, 3]"),
        ("[1, 2, 3]", "<think>They are 3.</think>\n[1, 2, 3]\n"),
        ("2024-01-05", "2024-01-05"),
        ("C", "Answer: C) Paris"),
        ("C", "Well, C: Paris is not. The correct option is C."),
        (0.00001, r"\boxed{10^{-5}}"),
        (6.02e23, r"There are 6.02 \times 10^{23}"),
        ("-5 m/s", "The velocity is -5 m/s"),
        ("12 km", "That is 12 miles."),
        ("5 apples", "That is 5 pears."),
    ],
)
def test_right(verify: Reward, known: Any, reply: str) -> None:
    assert verify([rollout(reply, answer=known)]) == [1.0]


@pytest.mark.parametrize(
    ("known", "reply"),
    [
        ("Paris", "It is not Paris"),
        ("C", "C) is out.\nD) is right."),
        ("C", "C. That leaves D."),
        ("C", "Cats"),
        ("[1, 2, 3]", "[1, 2, 4]"),
        ("1e3", r"\boxed{3e}"),
        ("2024-01-05", r"\boxed{2018}"),
        ("3", "<think>3"),
    ],
)
def test_wrong(verify: Reward, known: Any, reply: str) -> None:
    assert verify([rollout(reply, answer=known)]) == [0.0]


def test_a_row_whose_answer_cannot_be_compared_abstains_whatever_is_answered(verify: Reward) -> None:
    sentence = "The air scatters blue light more than red, so the sky is blue."
    assert verify([rollout("42", answer=sentence), rollout(sentence, answer=sentence)]) == [None, None]
    assert verify([rollout("x", answer=sentence, ended=False), rollout("3", answer="{3")]) == [None, None]


def test_the_answer_stands_after_the_thoughts(verify: Reward) -> None:
    assert verify(
        [
            rollout(r"<think>Perhaps \boxed{41}?</think>The answer is 42.", answer="42"),
            rollout(r"Perhaps \boxed{41}?</think>The answer is 42.", answer="42"),
            rollout(r"<think>It is \boxed{42}", answer="42"),
            rollout(r"<think>It is \boxed{42}</think>", answer="42"),
        ]
    ) == [1.0, 1.0, 0.0, 0.0]


def test_thoughts_that_the_prompt_opens_and_nobody_closes(smollm: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(smollm)
    reward = make(Config(seconds=60), RewardContext(tokenizer=tokenizer))
    opened = "<|im_start|>assistant\n<think>\n"
    answers = ["So 40+2, the answer is 42.", "So 40+2.</think>The answer is 42.", "The answer is 42."]
    batch = [
        after(tokenizer, opened, answers[0], answer="42"),
        after(tokenizer, opened, answers[1], answer="42"),
        after(tokenizer, "<|im_start|>assistant\n<think>\n\n</think>\n\n", answers[2], answer="42"),
        after(tokenizer, "<|im_start|>assistant\n", answers[2], answer="42"),
    ]
    assert reward(batch) == [0.0, 1.0, 1.0, 1.0]
    reward.close()


@pytest.mark.parametrize(("cut_off", "value"), [("wrong", -1.0), ("verify", 2.0), ("abstain", None)])
def test_what_was_cut_off(cut_off: Any, value: float | None) -> None:
    reward = make(Config(field="key", right=2.0, wrong=-1.0, cut_off=cut_off), RewardContext())
    batch = [
        rollout("The answer is 42.", key="42", ended=False),
        rollout("The answer is 42.", key="42"),
        rollout("The answer is 4.", key="42"),
        rollout("The answer is 42.", answer="42", ended=False),
    ]
    assert reward(batch) == [value, 2.0, -1.0, None]
    reward.close()


def test_strategies_are_the_configs() -> None:
    reward = make(Config(strategies=("boxed",)), RewardContext())
    assert reward([rollout(r"\boxed{42}", answer="42"), rollout("The answer is 42.", answer="42")]) == [1.0, 0.0]
    reward.close()


def test_a_comparison_that_hangs_is_wrong_and_holds_nobody_up() -> None:
    reward = make(Config(seconds=1.0), RewardContext())
    # The workers start.
    reward([rollout(r"\boxed{x+1}", answer="1+x")])
    began = time.monotonic()
    hangs = rollout(r"\boxed{9^{9^{9^{9}}}}", answer="5")
    assert reward([hangs, rollout("5", answer="5")]) == [0.0, 1.0]
    assert time.monotonic() - began < 60
    reward.close()


def test_many_threads(verify: Reward) -> None:
    batches = [[rollout(rf"\boxed{{{n}y+x}}", answer=f"x+{n % 3}y")] for n in range(6)]
    assert in_threads(verify, batches) == [[1.0], [1.0], [1.0], [0.0], [0.0], [0.0]]


@given(answer=st.integers(-(10**9), 10**9), other=st.integers(-(10**9), 10**9))
@settings(max_examples=50, deadline=None)
def test_integers_are_right_exactly_where_they_are_equal(verify: Reward, answer: int, other: int) -> None:
    row = rollout(f"So it is {other}.\n#### {other}", answer=f"Work.\n#### {answer}")
    assert verify([row]) == [float(answer == other)]


@pytest.mark.parametrize(
    ("held", "known"),
    [
        ("reasoning 3 and 4\n#### 1,234", "1,234"),
        ("reasoning\n#### B", "B"),
        ("#### a heading\nso 7", None),
        (r"we get \boxed{7}", "7"),
        (0.5, "0.5"),
        ("Paris", "Paris"),
        ("Answer: 42", "42"),
        ("The answer is 5", "5"),
        ("The final answer is: 12.", "12"),
        ("We add, so the answer is surely 5", None),
        ("Nobody knows what it is. The answer is 5. It was easy.", None),
        (0.00001, "1e-05"),
        ("5 m/s", "5 m/s"),
    ],
)
def test_known_answers(held: Any, known: str | None) -> None:
    assert known_answer({"answer": held}, "answer") == known


def test_a_field_of_another_type_is_a_mistake_of_the_data(verify: Reward) -> None:
    with pytest.raises(DataError, match=r"'answer'.*list.*\n.*rewards\.verify\.field"):
        verify([rollout("42", answer=["42"])])


def test_without_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="synth"):
        make(Config(), RewardContext())
