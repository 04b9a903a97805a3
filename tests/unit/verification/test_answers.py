"""Final answers: where they stand, and the numbers they are."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easydistill.verification.answers import DEFAULT_STRATEGIES, Found, Strategy, find_answer, only_statement
from easydistill.verification.numbers import bare, parse_number, spelt_out


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
        (r"so 6.02 \times 10^{23} of them", r"6.02 \times 10^{23}", "last_number"),
        ("about 6.02×10^23.", "6.02×10^23", "last_number"),
        ("it is 10^{-5}", "10^{-5}", "last_number"),
        ("5 * 10 = 50", "50", "last_number"),
        (r"which makes 3\frac{1}{2}", r"3\frac{1}{2}", "last_number"),
        ("she ate 3½ pies", "3½", "last_number"),
        ("On page 3 1/2 is told, so 7", "7", "last_number"),
        ("it falls at 9.8 m/s^2", "9.8", "last_number"),
        ("The correct option is C.", "C", "phrase"),
        ("the correct choice is **C**", "C", "phrase"),
        ("正确选项是C。", "C", "phrase"),
        ("The correct option is the second, 5", "5", "last_number"),
        ("The correct option is a 5", "5", "last_number"),
        ("The correct option is A dog with 4 legs", "4", "last_number"),
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
        (r"6.02 \times 10^{23}", Fraction(602 * 10**21)),
        (r"6.02\times10^{23}", Fraction(602 * 10**21)),
        ("6.02×10^23", Fraction(602 * 10**21)),
        ("6.02×10²³", Fraction(602 * 10**21)),
        ("6.02*10^{-4}", Fraction(602, 10**6)),
        (r"6.02 \cdot 10^5", Fraction(602_000)),
        ("3 x 10^5", Fraction(300_000)),
        ("10^{-5}", Fraction(1, 10**5)),
        ("10^(-5)", Fraction(1, 10**5)),
        ("10⁻⁵", Fraction(1, 10**5)),
        ("10**3", Fraction(1000)),
        ("-10^3", Fraction(-1000)),
        ("1e-05", Fraction(1, 10**5)),
        ("1e−5", Fraction(1, 10**5)),
        ("1e999", Fraction(10**999)),
        (r"3\frac{1}{2}", Fraction(7, 2)),
        (r"-3 \frac12", Fraction(-7, 2)),
        (r"\frac34", Fraction(3, 4)),
        ("½", Fraction(1, 2)),
        ("3½", Fraction(7, 2)),
        ("-3 ½", Fraction(-7, 2)),
        ("1⁄2", Fraction(1, 2)),
        ("3 1⁄2", Fraction(7, 2)),
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


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("5 m/s", 5, "m/s"),
        (r"5\text{ m/s}", 5, "m/s"),
        ("72km/h", 72, "km/h"),
        ("9.8 m/s^2", Fraction(49, 5), "m/s2"),
        (r"9.8\ \mathrm{m/s^{2}}", Fraction(49, 5), "m/s2"),
        ("9.8 m/s²", Fraction(49, 5), "m/s2"),
        ("2 kg·m/s^2", 2, "kg·m/s2"),
        ("60 miles/hour", 60, "miles/hour"),
        ("5 m²", 5, "m2"),
        ("5 cm^3", 5, "cm3"),
        ("-20 °C", -20, "degreesc"),
        (r"-20^\circ C", -20, "degreesc"),
        (r"-20^{\circ}\mathrm{C}", -20, "degreesc"),
        ("-20℃", -20, "degreesc"),
        ("90°", 90, "degree"),
        ("5 Apples", 5, "apple"),
    ],
)
def test_units(text: str, value: Fraction | int, unit: str) -> None:
    number = parse_number(text)
    assert number is not None
    assert (number.value, number.unit) == (value, unit)


@pytest.mark.parametrize("text", ["5m^2", "5m/g", "5 x^2", "5 x/y", "5 m^2 + 1", "5m", "5 mod/x"])
def test_variables_are_no_units(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    "text",
    [
        *("10^{1000}", "1e1000", "10^{10^3}", "10^3!", "10^3.5", "10^3^2", "210^3", r"3\frac{1}{0}", r"\frac123"),
        *("2024-01-05", "1/5/2024"),
    ],
)
def test_nor_are_powers_without_bound_and_dates(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Answer: 42", "42"),
        ("**Answer:** 42", "42"),
        ("The answer is 5", "5"),
        ("The final answer is: 12.", "12"),
        ("最终答案：42。", "42"),
        ("So the answer is 5", None),
        ("3 + 2. The answer is 5", None),
        ("The answer is 5. It was easy.", None),
        ("The answer is 3, the answer is 5", None),
        ("Answer:", None),
        ("42", None),
    ],
)
def test_texts_that_are_only_a_statement(text: str, said: str | None) -> None:
    assert only_statement(text) == said


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
    "part",
    [
        *("\\boxed{", "1,", "9", "the answer ", "####", "\n#### a", "{", "- ", "1 ", "。", "* "),
        *("10^{", "1 \\times 10", "1 \\frac{", "1½", "1 1⁄", "°", "m/s·", "correct option is C"),
    ],
)
def test_a_megabyte_of_anything_takes_no_time(part: str) -> None:
    text = part * (1_000_000 // len(part))
    find_answer(text)
    parse_number(text)
    parse_number(f"5 {text[:3990]}")
    only_statement(text)


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
def test_every_reference_of_gsm8k_is_found(corpus: Path, name: str) -> None:
    with (corpus / name).open(encoding="utf-8") as lines:
        answers = [json.loads(line)["answer"] for line in lines]
    for answer in answers:
        found = find_answer(answer)
        assert found is not None and found.strategy == "hashes", answer
        assert found.text == answer.rsplit("#### ", 1)[1].strip()
        number = parse_number(found.text)
        assert number is not None and not number.unit and number.value == Fraction(found.text.replace(",", ""))
