"""Tokens and normalised spellings in several languages: which texts count as equal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easydistill.data.records import Sample
from easydistill.synthesis.text import by_character, language_of, ngrams, normalise, prompt_text, tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The quick\tbrown  fox!", ["the", "quick", "brown", "fox"]),
        ("请用Python写快排。", ["请", "用", "python", "写", "快", "排"]),
        ("テストです", ["テ", "ス", "ト", "で", "す"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("안녕하세요 세계", ["안녕하세요", "세계"]),
        ("Ｃ＃, C++ & C", ["c#", "c", "+", "+", "c"]),
        ("3.5 kg, 1,000 m", ["3.5", "kg", "1,000", "m"]),
        ("well-known **bold** # heading", ["well", "known", "bold", "heading"]),
        ("6 - 3", ["6", "-", "3"]),
        ("6−3", ["6", "-", "3"]),
        ("x*3 and 50%", ["x", "*", "3", "and", "50", "%"]),
        ("😀 means?", ["😀", "means"]),
        ("?!", []),
    ],
)
def test_tokens(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


@given(st.text(alphabet="ab1 2.,3_-*/%#$+<>=^\n\t\x1c\x0bZ'\"C", max_size=20))
def test_ascii_has_the_tokens_that_it_has_beside_other_letters(text: str) -> None:
    assert tokens(text) == tokens(f"{text} 漢")[:-1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 2 + 2?", "what is 2+2"),
        ("ＡＢＣ　１２３", "abc 123"),
        ("写一首 诗。", "写一首诗"),
        ("Straße", "STRASSE"),
        ("cafe\u0301", "café"),
    ],
)
def test_equal_texts(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 6 - 3?", "What is 6 / 3?"),
        ("Round 3.5", "Round 35"),
        ("Write C", "Write C#"),
        ("a b", "ab"),
        ("?!", "..."),
        ("写诗", "写词"),
        ("x < y", "x > y"),
    ],
)
def test_different_texts(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


@given(st.text())
def test_a_normalised_text_stays_as_it_is(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Write a poem.", "en"),
        ("写一首诗", "zh"),
        ("请用Python写一个quicksort函数。", "zh"),
        ("Translate to English: 我喜欢吃苹果", "en"),
        ("これは日本語のテキストです", "en"),
        ("", "en"),
        ("2 + 2 = ?", "en"),
    ],
)
def test_language(text: str, language: str) -> None:
    assert language_of(text) == language


def test_ngrams_and_their_script() -> None:
    assert list(ngrams(["a", "b", "c"], 2)) == [("a", "b"), ("b", "c")]
    assert list(ngrams(["a"], 2)) == []
    assert by_character(tokens("写一首诗 please"))
    assert by_character(tokens("これはテスト"))
    assert not by_character(tokens("write about 诗"))
    assert not by_character([])


def test_a_prompt_is_compared_without_the_system_message() -> None:
    row = Sample(
        "1",
        (
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d"},
        ),
    )
    assert prompt_text(row) == "a\nb\nc"
