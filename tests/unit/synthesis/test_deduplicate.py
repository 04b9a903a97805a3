"""Deduplication: which rows are kept does not depend on their order, and no two kept rows are near each other."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easydistill.contracts.operator import answer_with
from easydistill.data.records import Sample
from easydistill.errors import DataError
from easydistill.synthesis.operators import OPERATORS
from easydistill.synthesis.operators.deduplicate import Config, deduplicate
from easydistill.synthesis.similarity import Novelty
from easydistill.synthesis.text import prompt_text


def row(identity: str, prompt: str, answer: str | None = None) -> Sample:
    answered = ({"role": "assistant", "content": answer},) if answer is not None else ()
    return Sample(identity, ({"role": "user", "content": prompt}, *answered))  # type: ignore[arg-type]


def check_invariants(rows: list[Sample], shuffler: random.Random) -> None:
    result = deduplicate(Config(), rows)
    kept = {each.id for each in result.accepted}
    # Every row is either kept or rejected, in the original order.
    assert sorted([*kept, *(each.id for each in result.rejected)]) == sorted(each.id for each in rows)
    assert result.entered == len(rows)
    assert result.accepted == [each for each in rows if each.id in kept]
    # The order of rows has no effect, not even on the details of rejections.
    shuffled = rows[:]
    shuffler.shuffle(shuffled)
    again = deduplicate(Config(), shuffled)
    assert {each.id for each in again.accepted} == kept
    assert {each.id: each for each in again.rejected} == {each.id: each for each in result.rejected}
    # A second pass finds nothing: no two kept rows are near each other.
    assert deduplicate(Config(), result.accepted).rejected == []
    for each in result.accepted:
        pool = Novelty()
        for other in result.accepted:
            if other is not each:
                pool.add(other.id, prompt_text(other))
        assert pool.check(prompt_text(each)) is None
    # Every dropped row names a kept row that it is near.
    texts = {each.id: prompt_text(each) for each in rows}
    for rejection in result.rejected:
        named = rejection.detail.rsplit(" ", 1)[1]
        assert named in kept
        alone = Novelty()
        alone.add(named, texts[named])
        near = alone.check(texts[rejection.id])
        assert near is not None and (near.reason, near.detail) == (rejection.reason, rejection.detail)


words = st.sampled_from(["sum", "list", "write", "a", "the", "of", "poem", "秋", "天", "写"])
prompts = st.lists(words, min_size=1, max_size=10).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(prompts, max_size=15), st.randoms(use_true_random=False))
def test_invariants(texts: list[str], shuffler: random.Random) -> None:
    check_invariants([row(str(number), text) for number, text in enumerate(texts)], shuffler)


def test_invariants_on_real_rows(corpus: Path) -> None:
    with (corpus / "p3_test.jsonl").open(encoding="utf-8") as handle:
        texts = [json.loads(line)["instruction"] for line in handle][:80]
    changed = [text.upper() + "!" for text in texts[:10]] + [text + " Explain briefly." for text in texts[10:20]]
    rows = [row(str(number), text) for number, text in enumerate(texts + changed)]
    check_invariants(rows, random.Random(0))
    dropped = deduplicate(Config(), rows).facts["dropped"]
    assert dropped["duplicate"] >= 10
    assert dropped["near_duplicate"] > 0
    assert dropped["too_similar"] > 0


def test_of_equal_rows_that_with_the_least_id_is_kept() -> None:
    rows = [row("b", "Write a poem"), row("a", "Write a poem"), row("c", "Write a poem")]
    result = deduplicate(Config(), rows)
    assert [each.id for each in result.accepted] == ["a"]
    assert [(each.id, each.reason, each.detail) for each in result.rejected] == [
        ("b", "duplicate", "the same text as a"),
        ("c", "duplicate", "the same text as a"),
    ]


def test_what_is_compared() -> None:
    rows = [row("1", "What is 2 + 2?", "4"), row("2", "What is 2 + 2?", "Two and two make four, as counting shows.")]
    assert len(deduplicate(Config(), rows).accepted) == 1
    assert len(deduplicate(Config(compare="answer"), rows).accepted) == 2
    assert len(deduplicate(Config(compare="both"), rows).accepted) == 2
    with pytest.raises(DataError, match="row 3 has no answer"):
        deduplicate(Config(compare="answer"), [row("3", "What?")])


def test_thresholds() -> None:
    rows = [
        row("1", "Name three rivers of Europe and their lengths"),
        row("2", "Name three rivers of Asia and their ages"),
    ]
    assert len(deduplicate(Config(), rows).accepted) == 1
    assert len(deduplicate(Config(too_similar=1.0), rows).accepted) == 2


def test_it_runs_as_an_operator_and_asks_no_model() -> None:
    module = OPERATORS.module("deduplicate")
    steps = module.run(module.Config(), [row("1", "a"), row("2", "a")], None)
    result = answer_with(steps, lambda asks: pytest.fail("it asked"))
    assert len(result.accepted) == len(result.rejected) == 1
    assert result.facts == {"kept": 1, "dropped": {"duplicate": 1}}


def test_other_surroundings_make_other_rows() -> None:
    """The same words under another system text, with other tools or variables, are no duplicate."""
    tools = [({"type": "function", "function": {"name": name, "parameters": {}}},) for name in ("count", "find")]
    asked: Any = {"role": "user", "content": "How many legs has a spider, and why are there so many of them?"}
    system: Any = {"role": "system", "content": "Answer in rhyme."}
    rows = [
        Sample("plain", (asked,)),
        Sample("plain again", (asked,)),
        Sample("system", (system, asked)),
        Sample("system again", (system, asked)),
        Sample("other system", ({**system, "content": "Answer in prose."}, asked)),
        Sample("tool", (asked,), tools=tools[0]),
        Sample("other tool", (asked,), tools=tools[1]),
        Sample("variable", (asked,), template_kwargs={"enable_thinking": False}),
    ]
    result = deduplicate(Config(), rows)
    assert [(one.id, one.reason) for one in result.rejected] == [
        ("plain again", "duplicate"),
        ("system again", "duplicate"),
    ]
    # Between near ones, too.
    near = [rows[0], Sample("near", (system, {**asked, "content": asked["content"] + " Please."}))]
    assert not deduplicate(Config(), near).rejected
    # Answers that are compared by themselves have no surroundings.
    answered = [Sample(row.id, (*row.messages, {"role": "assistant", "content": "Eight."})) for row in rows]
    assert len(deduplicate(Config(compare="answer"), answered).rejected) == len(rows) - 1
