"""Final answers: where they stand, and the numbers they are."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easydistill.verification.answers import (
    DEFAULT_STRATEGIES,
    Found,
    Strategy,
    bare,
    find_answer,
    parse_number,
    spelt_out,
)


@pytest.mark.parametrize(
    ("text", "answer", "strategy"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}", "boxed"),
        (r"first \boxed{5}, no: \boxed{\{1, 2\}}", r"\{1, 2\}", "boxed"),
        (r"\boxed{\boxed{5}}", "5", "boxed"),
        (r"it is \fbox{7}, put in \boxed{}", "7", "boxed"),
        (r"$\boxed 5$", "5", "boxed"),
        ("<<80*1.5=120>>120\n#### 1,234", "1,234", "hashes"),
        ("#### **$18**", "$18", "hashes"),
        ("#### 3\n#### 4 apples", "4 apples", "hashes"),
        ("#### Step 1: think\nThe answer is **42** apples.", "42 apples", "phrase"),
        ("The answer is 5. No! The final answer to this is: $-\\frac{3}{4}$.", r"-\frac{3}{4}", "phrase"),
        ("**Answer:** 3.14, because it is.", "3.14", "phrase"),
        ("Answer:\n\n  12", "12", "phrase"),
        ("Answer: (B)", "(B)", "phrase"),
        ("The answer is 1, 2 and 3.", "1, 2 and 3", "phrase"),
        ("所以答案是 -5。", "-5", "phrase"),
        ("答案：３，４５６元，因为……", "３，４５６元", "phrase"),
        ("He has 3 cats and 1/2 of 8 dogs, so 7.", "7", "last_number"),
        ("16 - 3 - 4 = <<16-3-4=9>>9", "9", "last_number"),
        ("it fell to -5", "-5", "last_number"),
        ("in all $3,000.50 are left", "$3,000.50", "last_number"),
        ("that is 12 % more", "12 %", "last_number"),
        ("共有3万元", "3万", "last_number"),
        ("重5千克", "5", "last_number"),
        ("she used 2 1/2 cups", "2 1/2", "last_number"),
        ("7 of them, on the 2nd", "7", "last_number"),
        ("one of 1,2,3", "3", "last_number"),
    ],
)
def test_the_first_strategy_that_finds_something_decides(text: str, answer: str, strategy: str) -> None:
    found = find_answer(text)
    assert found is not None
    assert (found.text, found.strategy) == (answer, strategy)


@pytest.mark.parametrize("text", ["", "no number here", "\\boxed{}", r"\boxed{5} but then \boxed{1"])
def test_nothing_is_found_where_there_is_nothing_or_the_reply_is_cut_off(text: str) -> None:
    assert find_answer(text) is None


def test_strategies_are_an_ordered_choice() -> None:
    text = "\\boxed{1} the answer is 2.\n#### 3\nbye 4"
    orders: list[tuple[tuple[Strategy, ...], str]] = [
        (DEFAULT_STRATEGIES, "1"),
        (("last_number", "boxed"), "4"),
        (("phrase",), "2"),
        (("hashes", "boxed"), "3"),
    ]
    for order, answer in orders:
        found = find_answer(text, order)
        assert found is not None and found.text == answer
    assert find_answer("about 5", ("boxed", "phrase")) is None
    with pytest.raises(ValueError, match="no such strategy: 'box'"):
        find_answer(text, ("box",))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.50", Fraction(2469, 2)),
        ("-7", Fraction(-7)),
        ("−7", Fraction(-7)),
        ("-$7", Fraction(-7)),
        ("$-7", Fraction(-7)),
        (".5", Fraction(1, 2)),
        ("0.1", Fraction(1, 10)),
        ("3/4", Fraction(3, 4)),
        ("-1 1/2", Fraction(-3, 2)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"$\dfrac{3}{4}$", Fraction(3, 4)),
        ("50%", Fraction(1, 2)),
        (r"50\%", Fraction(1, 2)),
        ("50 percent", Fraction(1, 2)),
        ("1e3", Fraction(1000)),
        ("2.5 million", Fraction(2_500_000)),
        ("3万", Fraction(30_000)),
        ("１２", Fraction(12)),
        (r"1{,}234\text{ dollars}", Fraction(1234)),
        ("42 apples per day", Fraction(42)),
        ("5公里", Fraction(5)),
        (r"90^\circ", Fraction(90)),
    ],
)
def test_numbers_are_exact(text: str, value: Fraction) -> None:
    number = parse_number(text)
    assert number is not None
    assert number.value == value


@pytest.mark.parametrize(
    "text",
    ["", "five", "1,2", "1, 2", "2 pi", "5x", "5 times", "5 hundred", "1/0", "2+2", "5 or 6", "x = 5", "1.2.3", "2^3"],
)
def test_other_things_are_not_numbers(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize("text", ["三分之二", "5又1", "9" * 1001, "1e99999", "1" + "0" * 10_000_000])
def test_nor_are_these(text: str) -> None:
    assert parse_number(text) is None


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_what_is_written_is_read(units: int, places: int) -> None:
    value = Fraction(units, 10**places)
    for written in (
        f"{units}/{10**places}",
        f"{float(value):,.{places}f}" if abs(units) < 10**9 else f"{units}e-{places}",
    ):
        number = parse_number(written)
        assert number is not None and number.value == value


@given(st.text(alphabet=st.sampled_from(r"\boxed{}#$*10. ,答案是answer is/%-" + "\n"), max_size=80))
def test_what_is_found_stands_where_it_is_said_to(text: str) -> None:
    found = find_answer(text)
    if found is not None:
        assert isinstance(found, Found)
        assert found.text in (bare(text[found.start : found.end]), text[found.start : found.end])
        assert found.text.strip()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "part", ["\\boxed{", "1,", "9", "the answer ", "####", "\n#### a", "{", "- ", "1 ", "。", "* "]
)
def test_a_megabyte_of_anything_takes_no_time(part: str) -> None:
    text = part * (1_000_000 // len(part))
    find_answer(text)
    parse_number(text)


@pytest.mark.timeout(20)
def test_boxes_that_never_close_before_an_empty_one_take_no_time() -> None:
    assert find_answer("\\boxed{" * 10_000 + "\\boxed{ }", ("boxed",)) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("make twenty-one apples", True),
        ("Half of it", True),
        ("一共二十一个", True),
        ("make 21 apples", False),
        ("someone weighs tenfold", False),
        ("", False),
    ],
)
def test_numbers_in_words(text: str, told: bool) -> None:
    assert spelt_out(text) is told


@pytest.mark.parametrize("name", ["gsm8k_train.jsonl", "gsm8k_test.jsonl"])
def test_every_reference_of_gsm8k_is_found(shared_data: Path, name: str) -> None:
    with (shared_data / name).open(encoding="utf-8") as lines:
        answers = [json.loads(line)["answer"] for line in lines]
    for answer in answers:
        found = find_answer(answer)
        assert found is not None and found.strategy == "hashes", answer
        assert found.text == answer.rsplit("#### ", 1)[1].strip()
        number = parse_number(found.text)
        assert number is not None and not number.unit and number.value == Fraction(found.text.replace(",", ""))
