"""Diversity metrics, compared with naive implementations of the same formulas."""

from __future__ import annotations

import json
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easydistill.data.records import Sample
from easydistill.synthesis.diversity import distinct, diversity, measure, quantiles, sampled, self_bleu
from easydistill.synthesis.text import ngrams

units = st.lists(st.sampled_from("abcd"), min_size=1, max_size=9)


def test_distinct() -> None:
    texts = [["a", "b", "a"], ["a", "b"]]
    assert distinct(texts, 1) == pytest.approx(2 / 5)
    assert distinct(texts, 2) == pytest.approx(2 / 3)
    assert distinct(texts, 3) == pytest.approx(1.0)
    assert distinct(texts, 4) is None
    assert distinct([], 1) is None


def bleu(candidate: list[str], references: list[list[str]]) -> float:
    """BLEU of Papineni et al. (2002), with 0.1 matches where there are none."""
    logs = []
    for order in range(1, min(4, len(candidate)) + 1):
        ours = Counter(ngrams(candidate, order))
        theirs = [Counter(ngrams(reference, order)) for reference in references]
        matched = sum(min(count, max(each[run] for each in theirs)) for run, count in ours.items())
        logs.append(math.log((matched or 0.1) / sum(ours.values())))
    closest = min((len(reference) for reference in references), key=lambda size: (abs(size - len(candidate)), size))
    penalty = min(1.0, math.exp(1 - closest / len(candidate)))
    return penalty * math.exp(sum(logs) / len(logs))


@settings(max_examples=200, deadline=None)
@given(st.lists(units, min_size=2, max_size=8))
def test_self_bleu(texts: list[list[str]]) -> None:
    expected = [bleu(text, texts[:number] + texts[number + 1 :]) for number, text in enumerate(texts)]
    assert self_bleu(texts) == pytest.approx(sum(expected) / len(expected))


def test_self_bleu_of_equal_and_of_unlike_texts() -> None:
    assert self_bleu([list("abcdef")] * 3) == pytest.approx(1.0)
    unlike = self_bleu([list("abcdef"), list("ghijkl"), list("mnopqr")])
    assert unlike is not None and unlike < 0.05
    assert self_bleu([list("abc")]) is None
    assert self_bleu([list("abc"), []]) is None


def test_quantiles() -> None:
    found = quantiles([4, 1, 3, 2, 5])
    assert found == {"p0": 1.0, "p5": 1.2, "p25": 2.0, "p50": 3.0, "p75": 4.0, "p95": 4.8, "p100": 5.0}
    assert quantiles([7]) == dict.fromkeys(("p0", "p5", "p25", "p50", "p75", "p95", "p100"), 7.0)
    assert quantiles([]) is None


def test_metrics_of_a_mixed_set() -> None:
    texts = {"1": "Write a poem about autumn.", "2": "写一首关于秋天的诗", "3": "Name three rivers of Europe."}
    found = measure(texts, ["Write a poem about winter.", "写一首关于冬天的诗"])
    assert found.texts == 3
    assert found.languages == {"en": 2, "zh": 1}
    assert found.distinct[1] == 1.0
    assert found.lengths is not None and (found.lengths["p0"], found.lengths["p100"]) == (5.0, 9.0)
    assert found.seed_similarity is not None
    assert found.seed_similarity["p100"] == pytest.approx(2 * 8 / 18, abs=1e-4)
    assert found.seed_similarity["p50"] == pytest.approx(0.8)
    assert found.seed_similarity["p0"] == 0.0
    assert found.sampled == 3
    rows = [Sample(identity, ({"role": "user", "content": text},)) for identity, text in texts.items()]
    facts = diversity(rows, rows[:1])
    assert json.loads(json.dumps(facts)) == facts
    assert facts["distinct"]["3"] == 1.0
    assert facts["seed_similarity"]["p100"] == 1.0


def test_few_or_no_texts() -> None:
    found = measure({})
    assert (found.texts, found.self_bleu, found.seed_similarity, found.lengths) == (0, None, None, None)
    assert found.distinct == {1: None, 2: None, 3: None}
    assert measure({"1": "a b"}).self_bleu is None


@given(st.dictionaries(st.text(max_size=4), st.text(alphabet="ab ", max_size=12), max_size=12), st.randoms())
def test_metrics_do_not_depend_on_the_order_of_rows(texts: dict[str, str], shuffler: random.Random) -> None:
    shuffled = list(texts.items())
    shuffler.shuffle(shuffled)
    assert measure(dict(shuffled), ["a b"], sample=4) == measure(texts, ["a b"], sample=4)


def test_the_sample() -> None:
    identities = [str(number) for number in range(100)]
    assert len(sampled(identities, 10, 0)) == 10
    assert sampled(identities, 10, 0) == sampled(identities[::-1], 10, 0) != sampled(identities, 10, 1)
    assert len(set(sampled(identities, 20, 0)) & set(sampled([*identities, "more"], 20, 0))) >= 19
    assert measure(dict.fromkeys(identities, "a b c d"), sample=7).sampled == 7
