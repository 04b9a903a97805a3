"""Chains of thought without their final answers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easydistill.verification.answers import statements
from easydistill.verification.numbers import numbers
from easydistill.verification.redaction import REDACTED, redact


@pytest.mark.parametrize(
    ("text", "known", "left"),
    [
        ("48/2 = 24 in May.\n48+24 = 72 clips.\n#### 72", "72", "48/2 = 24 in May.\n48+24 = [?] clips.\n#### [?]"),
        (
            "She sold 48+24 = <<48+24=72>>72 clips.\n#### 72",
            "72",
            "She sold 48+24 = <<48+24=[?]>>[?] clips.\n#### [?]",
        ),
        ("24+48=72. So the answer is 72 clips.", "72", "24+48=[?]. So the answer is [?]."),
        ("We add.\n\n\\boxed{72}", "72", "We add.\n\n\\boxed{[?]}"),
        ("We add.\nSo **72**.\n\\boxed{72}", "72", "We add.\nSo **[?]**.\n\\boxed{[?]}"),
        ("First \\boxed{70}, no: \\boxed{72}", "72", "First \\boxed{70}, no: \\boxed{[?]}"),
        ("It is \\boxed{71}", "72", "It is \\boxed{[?]}"),  # the last one, whatever it says
        ("4 - 2 = 2", "2", "4 - 2 = [?]"),
        ("4 apples - 2 apples = 2 apples", "2", "4 apples - 2 apples = [?] apples"),
        ("He has $1,500.00 left.", "1500", "He has [?] left."),
        ("- 72 clips", "72", "- [?] clips"),
        ("The total - 72 clips", "72", "The total - [?] clips"),
        ("That is half of it: \\frac{1}{2}.", "0.5", "That is half of it: [?]."),
        ("It is the capital.\nThe answer is Paris.", "Paris", "It is the capital.\nThe answer is [?]."),
        ("So it must be paris!", "Paris", "So it must be [?]!"),
        ("A train is faster, so B.", "B", "A train is faster, so [?]."),
        ("x + y = 3x, that is x+2y", "x+2y", "x + y = 3x, that is [?]"),
        ("48+24=72，所以一共72个。\n答案是72。", "72", "48+24=[?]，所以一共[?]个。\n答案是[?]。"),
        ("72 is even.\nSo she has many.\nThe answer is 72.", "72", "72 is even.\nSo she has many.\nThe answer is [?]."),
        (
            "So 7 * 3 gives 21 apples.\n**Final Answer**\n\\boxed{21}",
            "21",
            "So 7 * 3 gives [?] apples.\n**Final Answer**\n\\boxed{[?]}",
        ),
        (
            "So 7 * 3 gives 21 apples.\nTherefore:\n\\boxed{21}",
            "21",
            "So 7 * 3 gives [?] apples.\nTherefore:\n\\boxed{[?]}",
        ),
        (
            "That is 21 apples.\n</think>\nThe answer is \\boxed{21}.",
            "21",
            "That is [?] apples.\n</think>\nThe answer is [?].",
        ),
        (
            "That is 21 apples.\n\n### And so, at the very end, the answer\n\nThus\n21",
            "21",
            "That is [?] apples.\n\n### And so, at the very end, the answer\n\nThus\n[?]",
        ),
        ("She has 21.\nOf that, 7 are red.\nSo:\n21", "21", "She has 21.\nOf that, 7 are red.\nSo:\n[?]"),
        ("Cut off: \\boxed{7", "72", "Cut off: \\boxed{[?]"),
        ("No number here", "72", "No number here"),
        ("", "72", ""),
    ],
)
def test_what_is_left(text: str, known: str, left: str) -> None:
    assert redact(text, known) == left


def test_statements_are_found_in_order_and_once() -> None:
    text = "The answer is \\boxed{5}.\n#### 6\nAnswer: 7"
    assert [text[start:end] for start, end in statements(text)] == ["\\boxed{5}", "6", "7"]


LINES = st.lists(
    st.sampled_from(
        ["She adds 3 and 4.", "3 + 4 = 7", "So it is 7 pens.", "The answer is 7.", "#### 7", "\\boxed{7}", "", "Well."]
    ),
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(LINES)
def test_no_statement_and_no_concluding_line_holds_the_answer(lines: list[str]) -> None:
    found = redact("\n".join(lines), "7")
    assert all(REDACTED in found[start:end] for start, end in statements(found))
    concluding = [line for line in found.split("\n") if line.strip()][-1:]
    assert all(number.value != 7 for line in concluding for number, _, _ in numbers(line))
    assert redact(found, "7") == found


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200), st.text(max_size=12))
def test_any_text_can_be_redacted(text: str, known: str) -> None:
    redact(text, known)


def test_it_is_fast_on_hostile_text() -> None:
    redact("\\boxed{" * 20_000 + "#### 1\n" * 20_000 + "answer is " * 20_000, "1")
