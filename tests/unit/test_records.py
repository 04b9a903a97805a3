"""Ids and the held-out split depend on the contents of rows, not on their positions."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easydistill.data.messages import Message
from easydistill.data.reading import read_samples
from easydistill.data.records import (
    IdAssigner,
    Rejection,
    Sample,
    canonical_json,
    content_hash,
    count_reasons,
    split_heldout,
)


def said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def sample(identity: str, prompt: str, answer: str | None = None) -> Sample:
    answered = (said("assistant", answer),) if answer is not None else ()
    return Sample(identity, (said("user", prompt), *answered))


words = st.sampled_from(["a", "b", "c", "a-2", "a-2-2", "", "漢"])


@given(st.lists(st.tuples(words, st.none() | words.filter(bool)), max_size=15))
def test_ids_are_unique_whatever_ids_are_preferred(rows: list[tuple[str, str | None]]) -> None:
    assigner = IdAssigner()
    assert len({assigner.assign(content, preferred) for content, preferred in rows}) == len(rows)


@given(st.lists(words, max_size=12), st.randoms(use_true_random=False))
def test_ids_do_not_depend_on_the_order_of_rows(contents: list[str], shuffler: random.Random) -> None:
    def ids_by_content(rows: list[str]) -> dict[str, set[str]]:
        assigner = IdAssigner()
        found: dict[str, set[str]] = {}
        for row in rows:
            found.setdefault(row, set()).add(assigner.assign(row))
        return found

    shuffled = contents[:]
    shuffler.shuffle(shuffled)
    assert ids_by_content(shuffled) == ids_by_content(contents)


def test_an_id_belongs_to_the_content(tmp_path: Path) -> None:
    def ids(*rows: str) -> list[str]:
        path = tmp_path / "r.jsonl"
        path.write_text("\n".join(rows))
        return [each.id for each in read_samples(path, labelled=False)[0]]

    a, b = '{"instruction": "a"}', '{"instruction": "b"}'
    assert ids(a, b) == list(reversed(ids(b, a)))
    # Other keys, their order and the notation do not matter; the text does.
    assert ids('{"note": 1, "instruction": "\\u0061"}') == ids(a)
    assert ids('{"messages": [{"role": "user", "content": "a"}]}') == ids(a)
    assert ids('{"instruction": "a "}') != ids(a)


def test_equal_values_have_one_spelling() -> None:
    assert canonical_json({"b": 1, "a": [1, {"d": None, "c": "ä"}]}) == '{"a":[1,{"c":"ä","d":null}],"b":1}'
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": "1"})
    # A lone surrogate cannot be written as UTF-8, but different ones have different hashes.
    assert content_hash("\ud800") != content_hash("\ud801")


def test_prompt_and_answer_of_a_chat() -> None:
    chat = Sample("1", (said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "d")))
    assert chat.prompt == chat.messages[:3]
    assert chat.answer == "d"
    assert sample("2", "a").answer is None
    assert sample("2", "a").prompt == sample("3", "a", "x").prompt
    assert sample("2", "a").prompt_hash == sample("3", "a", "x").prompt_hash
    assert Sample("4", ()).answer is None
    assert Sample("4", ()).prompt == ()


def test_rejections_are_counted_most_frequent_first() -> None:
    reasons = ["b", "a", "b", "c", "b", "a"]
    counted = count_reasons(Rejection(str(n), "s", reason) for n, reason in enumerate(reasons))
    assert list(counted.items()) == [("b", 3), ("a", 2), ("c", 1)]


prompts = st.lists(st.integers(0, 15).map(str), min_size=1, max_size=60)


@given(prompts, st.integers(0, 20), st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_split(texts: list[str], count: int, seed: int, shuffler: random.Random) -> None:
    rows = [sample(str(number), text, f"answer {number}") for number, text in enumerate(texts)]
    train, heldout = split_heldout(rows, count, seed)
    # Nothing is lost or doubled, and each side keeps the order of the rows.
    assert sorted([*train, *heldout], key=rows.index) == rows
    assert train == sorted(train, key=rows.index)
    # No prompt is on both sides, and training never loses everything.
    assert not {row.prompt_hash for row in train} & {row.prompt_hash for row in heldout}
    assert train
    # As many as asked for, to within the rows of the last prompt taken.
    different = len(set(texts))
    assert bool(heldout) == (count > 0 and different > 1)
    if len({row.prompt_hash for row in train}) > 1:
        assert len(heldout) >= count
    most = max(texts.count(text) for text in texts)
    assert len(heldout) < count + most
    # The order of rows does not matter, nor does what was answered.
    shuffled = [sample(row.id, row.messages[0]["content"], "another answer") for row in rows]
    shuffler.shuffle(shuffled)
    assert {row.id for row in split_heldout(shuffled, count, seed)[1]} == {row.id for row in heldout}


@given(prompts, st.integers(1, 10))
def test_more_rows_of_the_same_prompts_do_not_change_the_split(texts: list[str], count: int) -> None:
    rows = [sample(str(number), text) for number, text in enumerate(texts)]
    again = [*rows, *(sample(f"{row.id}-again", row.messages[0]["content"]) for row in rows)]
    heldout = {row.prompt_hash for row in split_heldout(rows, count, 0)[1]}
    doubled = {row.prompt_hash for row in split_heldout(again, 2 * count, 0)[1]}
    assert doubled == heldout


def test_seeds_split_differently() -> None:
    rows = [sample(str(number), str(number)) for number in range(50)]
    splits = {tuple(row.id for row in split_heldout(rows, 10, seed)[1]) for seed in range(8)}
    assert len(splits) == 8
    assert split_heldout(rows, 10, 3) == split_heldout(rows, 10, 3)


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (49, 49), (50, 49), (1000, 49)])
def test_one_prompt_always_stays_in_training(count: int, expected: int) -> None:
    rows = [sample(str(number), str(number)) for number in range(50)]
    assert len(split_heldout(rows, count, 0)[1]) == expected
