"""The job `mix` without files of its own: how many rows of each input, which ones, under which ids, in which order."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.test_config_valid import load

from easydistill.data.messages import Message
from easydistill.data.records import Sample
from easydistill.errors import ConfigError, DataError
from easydistill.mixing.allotment import Shortage, Wanted, allot, known_total
from easydistill.mixing.drawing import Drawn
from easydistill.mixing.pool import Pool


def share(value: str, **more: Any) -> Wanted:
    return Wanted(share=Fraction(value), **more)


ALL, MANY = Wanted(), {"a": 1000, "b": 50, "c": 8}


@pytest.mark.parametrize(
    ("wanted", "total", "expected"),
    [
        ({"a": ALL, "b": ALL}, None, [1000, 50]),
        ({"a": Wanted(30), "b": ALL}, None, [30, 50]),
        ({"a": share(".5"), "b": share(".5")}, 20, [10, 10]),
        ({"a": share(".5"), "b": share(".5")}, 21, [11, 10]),
        # b has 50 rows, which are a quarter of 200.
        ({"a": share(".75"), "b": share(".25")}, None, [150, 50]),
        # c's 8 rows are four fifths.
        ({"a": share(".2"), "c": ALL}, None, [2, 8]),
        ({"a": share(".7"), "b": Wanted(30)}, None, [70, 30]),
        # What shares leave is divided as 50 to 8.
        ({"a": share(".42"), "b": ALL, "c": ALL}, 100, [42, 50, 8]),
        ({"a": ALL, "b": ALL}, 105, [100, 5]),
        ({"b": Wanted(epochs=3), "c": ALL}, None, [150, 8]),
        ({"b": Wanted(120, epochs=3), "c": ALL}, None, [120, 8]),
        ({"a": share(".5"), "c": share(".5", epochs=2)}, None, [16, 16]),
    ],
)
def test_rows_of_each_input(wanted: dict[str, Wanted], total: int | None, expected: list[int]) -> None:
    found = allot(wanted, MANY, total)
    assert list(found.values()) == expected
    assert known_total(wanted, total) in (None, sum(expected))


def test_more_than_there_are_is_refused_with_the_ways_out() -> None:
    with pytest.raises(Shortage, match=r"b: 80 wanted, 50 there(.|\n)*\"epochs\": 2"):
        allot({"a": share(".2"), "b": share(".8")}, MANY, 100)
    with pytest.raises(Shortage, match=r"c: 20 wanted, 8 there(.|\n)*\"epochs\": 3"):
        allot({"c": Wanted(20)}, MANY)
    with pytest.raises(Shortage, match="no row of c is left"):
        allot({"c": Wanted(20)}, {"c": 0})


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_shares_are_kept_to_a_row_and_never_exceed_what_is_there(data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=5))
    rows = data.draw(st.lists(st.integers(0, 300), min_size=len(parts), max_size=len(parts)))
    names = [f"i{number}" for number in range(len(parts))]
    wanted = {name: Wanted(share=Fraction(part, sum(parts))) for name, part in zip(names, parts, strict=True)}
    found = allot(wanted, dict(zip(names, rows, strict=True)))
    total = sum(found.values())
    for name, count in zip(names, rows, strict=True):
        assert found[name] <= count
        assert abs(found[name] - total * (wanted[name].share or 0)) < 1
    # One row more of each would be too many of some input.
    limit = min(Fraction(count) / (wanted[name].share or 1) for name, count in zip(names, rows, strict=True))
    assert limit - total < len(parts) + 1


# --- the config ---------------------------------------------------------------------------------------------------


def config(inputs: dict[str, Any], **mix: Any) -> dict[str, Any]:
    named = {name: {"path": f"{name}.jsonl", **values} for name, values in inputs.items()}
    return {"job_type": "mix", "mix": {"inputs": named, **mix}}


@pytest.mark.parametrize(
    ("inputs", "mix", "told"),
    [
        ({"a": {"share": 0.5}, "b": {"share": 0.4}}, {}, "add up to 0.9"),
        ({"a": {"share": 0.7}, "b": {"share": 0.4}}, {}, "add up to 1.1"),
        ({"a": {"share": 0.5}, "b": {"share": 0.5}, "c": {}}, {}, "leave nothing for the other inputs"),
        ({"a": {"share": 0.5, "count": 4}}, {}, "both count and share"),
        ({"a": {"count": 40}, "b": {"count": 50}}, {"total": 100}, "make 90 rows"),
        ({"a": {"count": 40}, "b": {}}, {"total": 30}, "more than the 30 rows of total"),
        ({"a": {"count": "some"}}, {}, r"mix\.inputs\.a\.count: "),
        ({"a b": {}}, {}, r'mix\.inputs\.a b: "a b" cannot be a name here'),
        ({"a": {}}, {"decontaminate": {}}, "no benchmark is named"),
    ],
)
def test_what_cannot_be_meant_is_refused(inputs: dict[str, Any], mix: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(config(inputs, **mix))


def test_tenths_are_exact() -> None:
    assert load(config({"a": {"share": 0.1}, "b": {"share": 0.2}, "c": {"share": 0.7}}, total=10))


def test_tasks_that_run_programs_need_no_permission_to_be_looked_for() -> None:
    job = load(config({"a": {}}, decontaminate={"tasks": [{"task": "humaneval", "data": "h.jsonl"}]}))
    assert job.mix.decontaminate.names == ["humaneval"]


# --- ids, draw and order ------------------------------------------------------------------------------------------


def row(identity: str, text: str = "", **meta: Any) -> Sample:
    question: Message = {"role": "user", "content": f"Question {text or identity}?"}
    answer: Message = {"role": "assistant", "content": f"Answer {text or identity}."}
    return Sample(identity, (question, answer), meta)


def pool(clashes: Any = "rename", **inputs: list[Sample]) -> Pool:
    made = Pool(list(inputs))
    for name, rows in inputs.items():
        for item in rows:
            made.add(name, item)
    made.settle(clashes, "mix")
    return made


def ids(rows: Any) -> list[str]:
    return [item.id for item in rows]


def test_equal_rows_are_one_and_clashing_ids_are_told_apart() -> None:
    made = pool(
        first=[row("1"), row("2"), row("2", "again")],
        second=[row("1"), row("2", "other"), row("3"), row("second:2", "named like it")],
    )
    rows = {item.id: item for item in Drawn(made, {"first": 3, "second": 3}, 0)}
    assert set(rows) == {"1", "2", "first:2", "second:2-2", "3", "second:2"}
    assert rows["second:2-2"].messages == row("2", "other").messages
    assert rows["second:2-2"].meta == {"mix_input": "second", "mix_id": "2"}
    assert [(item.id, item.reason) for item in made.rejected] == [("1", "duplicate")]
    assert made.told["second"].renamed == 1 and made.told["second"].available == 3


def test_clashes_are_dropped_or_refused_where_that_is_asked_for() -> None:
    inputs = {"first": [row("1")], "second": [row("1", "other")]}
    made = pool("drop", **inputs)
    assert [(item.id, item.reason) for item in made.rejected] == [("1", "id_clash")]
    with pytest.raises(DataError, match="row '1' of second has the id of another chat, of first"):
        pool("refuse", **inputs)


def test_order_and_draw_depend_on_seed_and_ids_alone() -> None:
    names = [f"row-{number}" for number in range(40)]
    forth = pool(a=[row(name) for name in names], b=[row(f"b-{name}") for name in names])
    back = pool(a=[row(name) for name in reversed(names)], b=[row(f"b-{name}") for name in names])
    counts = {"a": 15, "b": 5}
    assert ids(Drawn(forth, counts, 1)) == ids(Drawn(back, counts, 1))
    assert ids(Drawn(forth, counts, 1)) != ids(Drawn(forth, counts, 2))
    more = Drawn(forth, {"a": 30, "b": 5}, 1)
    assert set(ids(Drawn(forth, counts, 1))) < set(ids(more)), "a larger mix holds the smaller one"


def test_inputs_of_which_little_is_taken_do_not_come_first() -> None:
    made = pool(few=[row(f"f{number}") for number in range(2000)], whole=[row(f"w{number}") for number in range(100)])
    order = [item.meta["mix_input"] for item in Drawn(made, {"few": 100, "whole": 100}, 3)]
    # 50 of the first half are expected; a draw and an order by the same hashes would give all 100.
    assert 30 < order[:100].count("few") < 70


def test_copies_have_ids_of_their_own() -> None:
    made = pool(a=[row("1"), row("2"), row("1-epoch2", "named like a copy")])
    rows = list(Drawn(made, {"a": 7}, 0))
    assert len(set(ids(rows))) == 7
    copies = {item.id: item.meta for item in rows if "mix_epoch" in item.meta}
    assert {"1-epoch2-2", "2-epoch2", "1-epoch2-epoch2"} < set(copies) and len(copies) == 4
    assert copies["1-epoch2-2"] == {"mix_input": "a", "mix_id": "1", "mix_epoch": 2}


def test_a_mix_of_a_mix_says_where_rows_were_first() -> None:
    made = pool(outer=[row("inner:7", mix_input="inner", mix_id="7", rv=4)])
    (found,) = Drawn(made, {"outer": 1}, 0)
    assert found.meta == {"mix_input": "outer/inner", "mix_id": "7", "rv": 4}
