"""Rows: formats, ids, the held-out split, atomic writes, hidden secrets."""

from __future__ import annotations

import json
import random
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easydistill.data.files import replacing, write_json
from easydistill.data.reading import read_samples
from easydistill.data.records import IdAssigner, Sample, split_heldout
from easydistill.data.writing import paper_row, why_unwritable, write_paper_json, write_parquet
from easydistill.engine.secrets import MASK, Redactor
from easydistill.errors import DataError

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def write(folder: Path, name: str, rows: Any) -> Path:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows))
    return path


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "hi", "output": "ho"},
        {"instruction": "hi", "input": "", "output": "ho"},
        {"prompt": "hi", "response": "ho"},
        {"question": "hi", "answer": "ho"},
        {"messages": CHAT},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        {"conversations": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
    ],
    ids=lambda row: "+".join(row),
)
def test_shapes(row: dict[str, Any], name: str, tmp_path: Path) -> None:
    samples, rejected = read_samples(write(tmp_path, name, [row]), labelled=True)
    assert not rejected
    assert [dict(message) for message in samples[0].messages] == CHAT
    prompts, _ = read_samples(write(tmp_path, name, [row]), labelled=False)
    assert prompts[0].messages == samples[0].prompt


def test_more_shapes(tmp_path: Path) -> None:
    rows = [
        "just text",
        {"instruction": "add", "input": "1 2"},
        {"system": "be kind", "instruction": "x", "history": [["a", "b"]]},
        {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "x"}]},
    ]
    samples, _ = read_samples(write(tmp_path, "r.json", rows), labelled=False)
    assert [[message["role"][0] + ":" + message["content"] for message in sample.messages] for sample in samples] == [
        ["u:just text"], ["u:add\n\n1 2"], ["s:be kind", "u:a", "a:b", "u:x"], ["s:s", "u:x"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({}, "nothing"),
        ({"text": "x"}, "it has: text"),
        ({"instruction": 3}, "not text"),
        ({"instruction": "  "}, "empty"),
        ({"instruction": "x", "output": None}, "no answer"),
        ({"instruction": "x", "output": ""}, "answer is empty"),
        ({"instruction": "x", "output": [5]}, "not text"),
        ({"messages": []}, "not empty"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [1]}]}, "not text"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "no user message"),
        ({"conversations": [{"from": "martian", "value": "x"}]}, "martian"),
        ([1], "a list of messages"),
        (None, "not NoneType"),
    ],
)
def test_a_row_of_no_known_shape_is_a_rejected_row(row: Any, problem: str, tmp_path: Path) -> None:
    good = {"instruction": "hi", "output": "ho"}
    samples, rejected = read_samples(write(tmp_path, "r.json", [good, row]), labelled=True)
    assert len(samples) == 1
    assert problem in rejected[0].detail
    assert "row 2" in rejected[0].detail
    assert rejected[0].reason == "malformed_row"


def test_broken_files_are_clear_errors(tmp_path: Path) -> None:
    for name, content, word in [
        ("a.json", b'[{"instruction": "x"', "not valid JSON"),
        ("b.json", b"\xff\xfe", "UTF-8"),
        ("c.json", b"[]", "no rows in it"),
        ("d.json", b'"x"', "array"),
        ("e.parquet", b"nope", "Parquet"),
        ("f.bin", b"a,b", ".jsonl"),
        ("g.json", b'[{"x": 1}]', "instruction"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=word):
            read_samples(tmp_path / name, labelled=False)
    with pytest.raises(DataError, match="no such file"):
        read_samples(tmp_path / "nowhere.json", labelled=False)


def test_a_broken_line_does_not_cost_the_others(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"instruction": "a"}\n{"instr\n\n{"instruction": "b"}\n')
    samples, rejected = read_samples(tmp_path / "r.jsonl", labelled=False)
    assert [sample.messages[0]["content"] for sample in samples] == ["a", "b"]
    assert len(rejected) == 1


def test_written_rows_are_read_again(tmp_path: Path) -> None:
    reasoned = {"role": "assistant", "content": "ho", "reasoning_content": "hm"}
    samples = [
        Sample("1", tuple(CHAT)),  # type: ignore[arg-type]
        Sample("2", ({"role": "system", "content": "s"}, *CHAT)),  # type: ignore[arg-type]
        Sample("3", (CHAT[0], reasoned)),  # type: ignore[arg-type]
    ]
    write_paper_json(tmp_path / "a.json", samples)
    write_parquet(tmp_path / "a.parquet", samples)
    assert paper_row(samples[0]) == {"id": "1", "instruction": "hi", "output": "ho"}
    for name in ("a.json", "a.parquet"):
        found, rejected = read_samples(tmp_path / name, labelled=True)
        assert not rejected
        assert [(sample.id, sample.messages) for sample in found] == [(s.id, s.messages) for s in samples]


@given(st.lists(st.sampled_from(["a", "b", "c", "a-2"]), max_size=12))
def test_ids_are_unique(contents: list[str]) -> None:
    assigner = IdAssigner()
    assigned = [assigner.assign(text, text if text != "b" else None) for text in contents]
    assert len(set(assigned)) == len(contents)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(0, 20), st.integers(0, 5))
def test_the_split_ignores_order_and_keeps_prompts_together(prompts: list[int], count: int, seed: int) -> None:
    samples = [Sample(str(n), ({"role": "user", "content": str(text)},)) for n, text in enumerate(prompts)]
    train, heldout = split_heldout(samples, count, seed)
    shuffled = samples[:]
    random.Random(1).shuffle(shuffled)
    assert {s.id for s in split_heldout(shuffled, count, seed)[1]} == {s.id for s in heldout}
    assert {s.id for s in train} | {s.id for s in heldout} == {s.id for s in samples}
    assert not {s.prompt_hash for s in train} & {s.prompt_hash for s in heldout}
    assert train
    assert len(heldout) >= min(count, 1) * (len(set(prompts)) > 1)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"old": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("key", ["sk-plain-123", 'with "quotes" and \\', "slash/plus+équals=", "ünïcode-key"])
def test_a_secret_is_hidden_in_every_spelling(key: str) -> None:
    redactor = Redactor()
    redactor.register(key)
    for spelling in (
        key, json.dumps(key), json.dumps(key, ensure_ascii=False), urllib.parse.quote(key), urllib.parse.quote_plus(key),
        f"Bearer {key}!", repr({"a": [key]}) if "\\" not in key and "'" not in key else key,
    ):  # fmt: skip
        assert key not in redactor.text(spelling)
        assert MASK in redactor.text(spelling)
    assert redactor.value({"a": [key, 1, {key: None}]}) == {"a": [MASK, 1, {MASK: None}]}


def test_a_row_with_half_a_character_in_a_fields_name_is_told_before_it_is_written() -> None:
    sample = Sample("1", ({"role": "user", "content": "hi"},), {"half \ud800": 1})
    told = why_unwritable(sample)
    assert told is not None and "its field 'half \\ud800' cannot be written" in told
    assert why_unwritable(Sample("1", sample.messages, {"whole ü": 1})) is None
