"""The pool of texts: its search finds exactly what a comparison with every text would find."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easydistill.errors import MissingExtra
from easydistill.synthesis import postings as postings_module
from easydistill.synthesis import subsequences
from easydistill.synthesis.postings import Postings
from easydistill.synthesis.similarity import Novelty, _Features, _Signatures
from easydistill.synthesis.text import tokens

FOX = "The quick brown fox jumps over the lazy dog near the river bank while the sun sets behind the old hills"


def common_subsequence(first: list[str], second: list[str]) -> int:
    """The textbook dynamic programme."""
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, ours in enumerate(first):
        for j, theirs in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if ours == theirs else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def most_similar(text: str, pool: dict[str, str]) -> tuple[float, str] | None:
    """Largest ROUGE-L above 0.7 by comparison with every text."""
    units = tokens(text)
    found = []
    for identity, other in pool.items():
        theirs = tokens(other)
        common = common_subsequence(units, theirs)
        # In whole numbers: F > 0.7  ⇔  20·LCS > 7·(m + n).
        if 20 * common > 7 * (len(units) + len(theirs)):
            found.append((-2 * common / (len(units) + len(theirs)), identity))
    return (-min(found)[0], min(found)[1]) if found else None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (FOX.upper() + " !!", "duplicate"),
        (FOX.replace("lazy", "lazier"), "near_duplicate"),
        (
            "A slow brown fox jumps over a lazy cat near the river bank while the sun sets behind old hills",
            "too_similar",
        ),
        ("Name three rivers in Europe and say where they end.", None),
        ("The fox", None),
    ],
)
def test_what_is_new(text: str, reason: str | None) -> None:
    pool = Novelty()
    pool.add("fox", FOX)
    near = pool.check(text)
    assert (near.reason if near else None) == reason
    if near is not None:
        assert near.nearest == "fox"
        assert near.detail.endswith(" fox")
    assert len(pool) == 1


def test_chinese_is_compared_by_character() -> None:
    pool = Novelty()
    assert pool.offer("1", "请写一篇关于秋天景色的短文，不少于两百字。") is None
    same = pool.check("请写一篇关于秋天 景色的短文,不少于两百字")
    assert same is not None and same.reason == "duplicate"
    similar = pool.check("请写一篇关于冬天景色的短文，不超过三百字。")
    assert similar is not None and similar.reason == "too_similar"
    assert pool.check("把下面的句子翻译成英文：今天天气很好。") is None


def test_new_texts_are_added_and_others_are_not() -> None:
    pool = Novelty()
    assert pool.check(FOX) is None
    assert pool.offer("a", FOX) is None
    again = pool.offer("b", FOX)
    assert again is not None and again.nearest == "a"
    assert len(pool) == 1


@pytest.mark.parametrize("order", ["zab", "abz", "bza"])
def test_of_equally_near_texts_the_least_id_is_named(order: str) -> None:
    similar = {
        "z": "one two three four five six x",
        "a": "one two three four five six y",
        "b": "one two three four five",
    }
    same = dict.fromkeys("zab", "Sum up the text.")
    for texts, text in ((similar, "one two three four five six"), (same, "sum up the text")):
        pool = Novelty(near_duplicate=1.0)
        for identity in order:
            pool.add(identity, texts[identity])
        near = pool.check(text)
        assert near is not None and near.nearest == "a"


def test_texts_without_tokens_equal_only_the_same_text() -> None:
    pool = Novelty()
    pool.add("q", "?!")
    assert pool.check("...") is None
    same = pool.check(" ?!")
    assert same is not None and same.reason == "duplicate"
    assert pool.offer("empty", "") is None


vocabulary = st.sampled_from(["a", "b", "c", "d", "e", "漢", "字", "3.5", "+"])
short_texts = st.lists(vocabulary, max_size=14).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(short_texts, max_size=12), short_texts)
def test_rouge_l_finds_what_a_comparison_with_all_finds(texts: list[str], text: str) -> None:
    # This restricts MinHash to equal sets.
    pool = Novelty(near_duplicate=1.0)
    others = {str(number): each for number, each in enumerate(texts)}
    for identity, each in others.items():
        pool.add(identity, each)
    near = pool.check(text)
    expected = most_similar(text, others)
    if near is None:
        assert expected is None
    elif near.reason == "too_similar":
        assert expected is not None
        assert near.nearest == expected[1]
        assert near.detail == f"ROUGE-L {expected[0]:.2f} to {expected[1]}"


@settings(max_examples=100, deadline=None)
@given(st.lists(short_texts, max_size=10), st.randoms(use_true_random=False), short_texts)
def test_an_answer_does_not_depend_on_the_order_of_the_pool(
    texts: list[str], shuffler: random.Random, text: str
) -> None:
    def answer(rows: list[tuple[int, str]]) -> object:
        pool = Novelty()
        for number, each in rows:
            pool.add(str(number), each)
        return pool.check(text)

    rows = list(enumerate(texts))
    shuffled = rows[:]
    shuffler.shuffle(shuffled)
    assert answer(shuffled) == answer(rows)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from([0.5, 0.8, 0.9, 1.0]))
def test_every_signature_that_agrees_enough_is_found(data: st.DataObject, threshold: float) -> None:
    letters = st.text(alphabet="abcdef ", min_size=20, max_size=80)
    base = data.draw(letters)
    cut = data.draw(st.integers(0, 20))
    texts = [base[cut:], base + base[:cut], data.draw(letters)]
    table = _Signatures(threshold, 128)
    features = [_Features(text) for text in texts]
    for number, each in enumerate(features):
        table.add(number, each)
    asked = _Features(base)
    shared = [int((table._of(each)[0] == table._of(asked)[0]).sum()) for each in features]
    agreeing = [(-equal / 128, str(number)) for number, equal in enumerate(shared) if equal >= threshold * 128]
    found = table.nearest(asked, ["0", "1", "2"])
    assert (found is not None) == bool(agreeing)
    if found is not None:
        assert found == (-min(agreeing)[0], min(agreeing)[1])


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(MissingExtra, match="easydistill-toolkit\\[synth\\]"):
        Novelty()


def test_real_rows_are_judged_as_by_comparison_with_all(corpus: Path) -> None:
    with (corpus / "p3_test.jsonl").open(encoding="utf-8") as handle:
        texts = [json.loads(line)["instruction"] for line in handle][:120]
    texts = [text for text in texts if len(tokens(text)) < 150]
    pool = Novelty()
    kept: dict[str, str] = {}
    counts = {"too_similar": 0, None: 0}
    for number, text in enumerate(texts):
        near = pool.offer(str(number), text)
        expected = most_similar(text, kept)
        if near is None:
            assert expected is None
            kept[str(number)] = text
            counts[None] += 1
        elif near.reason == "too_similar":
            assert expected is not None
            assert near.nearest == expected[1]
            counts["too_similar"] += 1
    assert min(counts.values()) > 0


@pytest.mark.parametrize("vocabulary", [3, 30, 1000])
@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.95])
def test_searches_by_pairs_find_what_comparison_with_all_finds(
    vocabulary: int, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rapidfuzz.distance import LCSseq

    monkeypatch.setattr(subsequences, "CROWDED", 3)
    monkeypatch.setattr(subsequences, "_PATIENCE", 20)
    draw = random.Random(vocabulary)
    pool, texts, ids = subsequences.Subsequences(threshold), list[list[str]](), list[str]()
    found = 0
    for number in range(150):
        text = [f"w{draw.randrange(vocabulary)}" for _ in range(draw.randint(0, 40))]
        if texts and draw.random() < 0.5:
            text = [word for word in draw.choice(texts) if draw.random() < 0.85]
        expected = None
        for identity, other in zip(ids, texts, strict=True):
            measure = 2 * LCSseq.similarity(text, other) / max(1, len(text) + len(other))
            if measure > threshold:
                expected = subsequences.nearer(expected, (measure, identity))
        assert pool.nearest(text, ids) == expected
        found += expected is not None
        pool.add(number, text)
        texts.append(text)
        ids.append(f"r{number:03}")
    assert found > 10
    assert pool.cut == 0


@pytest.mark.parametrize("large", [postings_module._LARGE, 4])
def test_postings_in_segments_give_what_a_dictionary_gives(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postings_module, "_BLOCK", 4)
    monkeypatch.setattr(postings_module, "_LARGE", large)
    draw = random.Random(0)
    postings, plain = Postings(recent=50), dict[int, list[int]]()
    for number in range(400):
        keys = np.array([draw.randrange(60) for _ in range(draw.randint(0, 5))], dtype=np.uint32)
        postings.add(number, keys)
        for key in keys.tolist():
            plain.setdefault(key, []).append(number)
        asked = np.array(draw.sample(range(70), 4), dtype=np.uint32)
        rows, entries, cut = postings.find(asked)
        wanted = [row for key in asked.tolist() for row in plain.get(key, [])]
        assert (rows.tolist(), entries, cut) == (sorted(set(wanted)), len(wanted), False)
        rows, entries, cut = postings.find(asked, budget=10)
        assert entries <= 10
        assert cut == (len(wanted) > 10)
        assert set(rows.tolist()) <= set(wanted)


def test_a_large_pool_of_equal_words_is_searched_within_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subsequences, "CROWDED", 20)
    monkeypatch.setattr(subsequences, "BUDGET", 40)
    monkeypatch.setattr(subsequences, "_PATIENCE", 50)
    draw = random.Random(1)
    pool = Novelty(near_duplicate=1.0)
    texts = [" ".join(f"w{draw.randrange(40)}" for _ in range(60)) for _ in range(600)]
    for number, text in enumerate(texts):
        pool.offer(f"r{number}", text)
    assert pool.cut > 0
    words = texts[-1].split()
    near = pool.check(" ".join([*words[:20], "new", *words[21:]]))
    assert near is not None
    assert near.reason == "too_similar"
