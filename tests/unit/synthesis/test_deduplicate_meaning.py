"""Rows that say the same in other words are found by embeddings, independent of their order."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from easydistill.data.records import Sample
from easydistill.errors import ModelError
from easydistill.synthesis.meaning import Meanings, embeddings
from easydistill.synthesis.operators.deduplicate import Config, deduplicate

TEXTS = [
    "Name three fruits.",
    "How do bees make honey?",
    "Write a poem about the sea.",
    "What is 12 times 7?",
    "",
    "x" * 3000,
]


def rows() -> list[Sample]:
    return [Sample(f"row-{n}", ({"role": "user", "content": text},)) for n, text in enumerate(TEXTS)]


def test_embeddings_do_not_depend_on_the_batch(tiny_model: Path) -> None:
    together = embeddings(str(tiny_model), TEXTS)
    assert set(together) == set(TEXTS)
    for text, vector in together.items():
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5) or text == ""
        alone = embeddings(str(tiny_model), [text])[text]
        np.testing.assert_allclose(alone, vector, atol=1e-5)
    again = embeddings(str(tiny_model), reversed(TEXTS))
    assert all((again[text] == vector).all() for text, vector in together.items())


def test_rows_of_the_same_meaning_are_dropped_in_any_order(tiny_model: Path) -> None:
    vectors = embeddings(str(tiny_model), TEXTS)
    cosines = sorted(float(vectors[a] @ vectors[b]) for a in TEXTS for b in TEXTS if a < b)
    config = Config(embeddings=str(tiny_model), same_meaning=max(0.01, cosines[-2] - 1e-6))
    kept = {row.id for row in deduplicate(config, rows()).accepted}
    assert len(kept) < len(TEXTS)
    result = deduplicate(config, rows())
    assert {rejection.reason for rejection in result.rejected} == {"same_meaning"}
    for seed in range(5):
        shuffled = rows()
        random.Random(seed).shuffle(shuffled)
        assert {row.id for row in deduplicate(config, shuffled).accepted} == kept
    # No two kept rows are near each other, and every dropped row is near a kept one.
    texts = {row.id: row.messages[0]["content"] for row in rows()}
    for rejection in result.rejected:
        named = rejection.detail.rsplit(" ", 1)[1]
        assert named in kept
        assert vectors[texts[named]] @ vectors[texts[rejection.id]] >= config.same_meaning
    for one in kept:
        for other in kept - {one}:
            assert vectors[texts[one]] @ vectors[texts[other]] < config.same_meaning


def test_a_pool_grows_beyond_its_first_size() -> None:
    draw = np.random.default_rng(0)
    vectors = {
        str(n): vector / np.linalg.norm(vector) for n, vector in enumerate(draw.normal(size=(300, 8)).astype("f4"))
    }
    pool = Meanings(vectors, 0.999)
    for text in vectors:
        assert pool.check(text) is None
        pool.add(f"id-{text}", text)
    assert all(pool.check(text).nearest == f"id-{text}" for text in vectors)  # type: ignore[union-attr]


def test_a_missing_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError):
        deduplicate(Config(embeddings=str(tmp_path)), rows())
