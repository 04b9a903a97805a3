"""ROUGE-L against plain implementations, and by hand."""

from __future__ import annotations

import itertools
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easydistill.data.rouge import rouge_l
from easydistill.errors import MissingExtra

tokens = st.lists(st.sampled_from(["a", "b", "c", "漢", "3.5", "the cat"]), max_size=40)
short = st.lists(st.sampled_from("abc"), max_size=8)


def by_table(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, by dynamic programming."""
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for (i, ours), (j, theirs) in itertools.product(enumerate(first), enumerate(second)):
        table[i + 1][j + 1] = table[i][j] + 1 if ours == theirs else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def by_trying_everything(first: list[str], second: list[str]) -> int:
    for size in range(min(len(first), len(second)), 0, -1):
        if set(itertools.combinations(first, size)) & set(itertools.combinations(second, size)):
            return size
    return 0


@settings(max_examples=300, deadline=None)
@given(tokens, tokens)
def test_it_equals_a_plain_implementation(first: list[str], second: list[str]) -> None:
    expected = 2 * by_table(first, second) / (len(first) + len(second)) if first and second else 0.0
    assert rouge_l(first, second) == expected


@settings(max_examples=200, deadline=None)
@given(short, short)
def test_it_equals_brute_force(first: list[str], second: list[str]) -> None:
    expected = 2 * by_trying_everything(first, second) / (len(first) + len(second)) if first and second else 0.0
    assert rouge_l(first, second) == expected


def test_long_lists() -> None:
    first = [str(n % 97) for n in range(1500)]
    second = [str(n % 89) for n in range(1400)]
    assert rouge_l(first, second) == 2 * by_table(first, second) / 2900


def test_by_hand() -> None:
    assert rouge_l(["a", "b", "c", "d"], ["a", "x", "c"]) == pytest.approx(2 * 2 / 7)
    assert rouge_l(["a"], []) == 0.0
    assert rouge_l([], []) == 0.0


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    with pytest.raises(MissingExtra, match="ROUGE-L needs the extra"):
        rouge_l(["a"], ["a"])
