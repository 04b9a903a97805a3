"""Files of rows: what is written is read again, by our readers, `datasets`, pandas and pyarrow, as the same chat."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trl.data_utils import is_conversational

from easydistill.data.messages import Message, ToolCall
from easydistill.data.plain import plain_json
from easydistill.data.preferences import Preference
from easydistill.data.reading import read_samples
from easydistill.data.records import Sample
from easydistill.data.row_files import rows_of
from easydistill.data.writing import (
    chat_row,
    file_message,
    pair_row,
    paper_row,
    writable,
    write_json_rows,
    write_pairs_json,
    write_pairs_parquet,
    write_paper_json,
    write_parquet,
    written_meta,
)
from easydistill.errors import DataError

TOOLS = (
    {"type": "function", "function": {"name": "legs", "parameters": {"type": "object", "properties": {"n": {}}}}},
    {"type": "function", "function": {"name": "wings", "description": "d", "strict": True, "parameters": {}}},
)
CALLS: list[ToolCall] = [
    {"id": "c1", "name": "legs", "arguments": {"animal": "spider", "n": 1}},
    {"name": "wings", "arguments": {"where": None, "deep": {"a": [1, "x"]}}},
]
AGENT: tuple[Message, ...] = (
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": CALLS},
    {"role": "tool", "content": "8", "tool_call_id": "c1", "name": "legs"},
    {"role": "assistant", "content": "Wait.", "weight": 0},
    {"role": "assistant", "content": "Eight."},
)
PLAIN: tuple[Message, ...] = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"})


def by_datasets(path: Path, cache: Path) -> list[dict[str, Any]]:
    kind = {".json": "json", ".parquet": "parquet"}[path.suffix]
    return list(datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(cache)))


def by_pandas(path: Path) -> list[dict[str, Any]]:
    """As text, which json.loads reads."""
    return [
        {
            name: [json.loads(each) for each in value] if name in ("messages", "tools") and value is not None else value
            for name, value in row.items()
        }
        for row in pd.read_parquet(path).to_dict("records")
    ]


# --- rows of text alone ---------------------------------------------------------------------------------------


def test_rows_of_text_are_written_as_ever(tmp_path: Path) -> None:
    thinking: Message = {"role": "assistant", "content": "ho", "reasoning_content": "hm"}
    samples = [
        Sample("1", PLAIN, {"_row": 1, "score": 3, "ü": None}),
        Sample("2", ({"role": "system", "content": "s"}, *PLAIN), {"score": 2.5}),
        Sample("3", (PLAIN[0], thinking)),
        Sample("4", PLAIN[:1]),
    ]
    write_paper_json(tmp_path / "a.json", samples)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == (
        '[\n{"id": "1", "instruction": "hi", "output": "ho", "score": 3, "ü": null},\n'
        '{"id": "2", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}, '
        '{"role": "assistant", "content": "ho"}], "score": 2.5},\n'
        '{"id": "3", "instruction": "hi", "output": "ho", "reasoning_content": "hm"},\n'
        '{"id": "4", "instruction": "hi"}\n]\n'
    )
    write_parquet(tmp_path / "a.parquet", samples)
    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("reasoning_content", pa.string())])
    expected = pa.schema(
        [("id", pa.string()), ("messages", pa.list_(message)), ("score", pa.float64()), ("ü", pa.null())]
    )
    assert pq.read_schema(tmp_path / "a.parquet").equals(expected)
    assert [row["messages"] for row in rows_of(tmp_path / "a.parquet")] == [list(each.messages) for each in samples]


def test_a_short_chat_is_written_whole() -> None:
    marked: Message = {"role": "assistant", "content": "ho", "weight": 0}
    assert paper_row(Sample("1", (PLAIN[0], marked)))["messages"][1]["weight"] == 0
    assert paper_row(Sample("1", PLAIN, tools=TOOLS))["tools"] == list(TOOLS)
    assert paper_row(Sample("1", PLAIN, template_kwargs={"think": True}))["chat_template_kwargs"] == {"think": True}
    calling = Sample("1", (PLAIN[0], {"role": "assistant", "content": "", "tool_calls": CALLS}))
    assert paper_row(calling)["messages"][1]["tool_calls"][0] == {
        "id": "c1",
        "type": "function",
        "function": {"name": "legs", "arguments": {"animal": "spider", "n": 1}},
    }


# --- chats with calls -----------------------------------------------------------------------------------------

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["", " ", "\n", " x\t", "null", "12", '{"a": 1}', "[]", "2024-05-01", "\u2028", "\ufeffx", "😀", "</s>"]
)
NUMBERS = st.integers(-(2**53), 2**53) | st.sampled_from([0.5, -2.25, 1e100, 0.1])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.sampled_from(["a", "b", "city", "n"]) | WORDS, VALUES, max_size=4)


@st.composite
def calls(draw: st.DrawFn) -> ToolCall:
    call: ToolCall = {"name": draw(st.sampled_from(["f", "g", "h"])), "arguments": draw(OBJECTS)}
    return {"id": draw(WORDS.filter(bool)), **call} if draw(st.booleans()) else call


@st.composite
def messages(draw: st.DrawFn) -> Message:
    role = draw(st.sampled_from(["system", "developer", "user", "assistant", "tool"]))
    message: Message = {"role": role, "content": draw(WORDS)}
    if role == "assistant":
        if draw(st.booleans()):
            message["reasoning_content"] = draw(WORDS.filter(bool))
        if draw(st.booleans()):
            message["tool_calls"] = draw(st.lists(calls(), min_size=1, max_size=3))
        if draw(st.booleans()):
            message["weight"] = 0
    if role == "tool" and draw(st.booleans()):
        message["tool_call_id"], message["name"] = draw(WORDS), draw(WORDS)
    return message


@st.composite
def samples(draw: st.DrawFn) -> list[Sample]:
    chats = st.tuples(
        st.lists(messages(), min_size=1, max_size=5),
        st.lists(st.sampled_from(TOOLS) | OBJECTS, max_size=2),
        OBJECTS,
        st.dictionaries(st.sampled_from(["score", "note"]), VALUES, max_size=2),
    )
    return [
        Sample(f"r{n}", tuple(chat), meta, tools=tuple(tools), template_kwargs=kwargs)
        for n, (chat, tools, kwargs, meta) in enumerate(draw(st.lists(chats, min_size=1, max_size=4)))
    ]


def same_chat(row: Mapping[str, Any], sample: Sample, *, filled: bool = False) -> None:
    """Args: filled: whether the reader shows absent thoughts of a file of text alone as None."""
    found = row["messages"]
    if filled:
        found = [{name: value for name, value in each.items() if value is not None} for each in found]
    assert found == list(map(file_message, sample.messages))
    assert (row.get("tools") or []) == list(sample.tools)
    assert (row.get("chat_template_kwargs") or {}) == sample.template_kwargs


FEW = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))


@FEW
@given(samples())
def test_chats_come_back_from_json_and_parquet(made: list[Sample]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_json_rows(Path(folder, "a.json"), map(chat_row, made))
        write_parquet(Path(folder, "a.parquet"), made)
        for name in ("a.json", "a.parquet"):
            found = list(rows_of(Path(folder, name)))
            assert [row["id"] for row in found] == [sample.id for sample in made]
            for row, sample in zip(found, made, strict=True):
                same_chat(row, sample)
        if not pa.types.is_struct(column(Path(folder, "a.parquet"))):
            for row, sample in zip(by_pandas(Path(folder, "a.parquet")), made, strict=True):
                assert row["messages"] == list(map(file_message, sample.messages))


def column(path: Path) -> Any:
    return pq.read_schema(path).field("messages").type.value_type


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Turns as they follow each other in chats, the last one the assistant's."""
    spoken = WORDS.filter(str.strip)
    chat: list[Message] = [{"role": "system", "content": draw(spoken)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        chat.append({"role": "user", "content": draw(spoken)})
        for number in range(draw(st.integers(0, 2))):
            named: Message = {
                "role": "assistant",
                "content": draw(WORDS),
                "tool_calls": [{**draw(calls()), "id": f"c{number}"}],
            }
            chat += [named, {"role": "tool", "content": draw(WORDS), "tool_call_id": f"c{number}", "name": "f"}]
        answer: Message = {"role": "assistant", "content": draw(spoken)}
        if draw(st.booleans()):
            answer["reasoning_content"] = draw(spoken)
        if draw(st.booleans()) and len(chat) < 3:
            answer["weight"] = 0
        chat.append(answer)
    chat[-1].pop("weight", None)
    return chat


@FEW
@given(
    st.lists(
        st.tuples(
            conversations(), st.booleans(), st.dictionaries(st.sampled_from(["think", "effort"]), WORDS | st.booleans())
        ),
        min_size=1,
        max_size=4,
    )
)
def test_our_readers_make_the_same_samples(chats: list[tuple[list[Message], bool, dict[str, Any]]]) -> None:
    made = [
        Sample(f"r{n}", tuple(chat), {"score": n}, tools=TOOLS if tools else (), template_kwargs=kwargs)
        for n, (chat, tools, kwargs) in enumerate(chats)
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_paper_json(Path(folder, "a.json"), made)
        write_parquet(Path(folder, "a.parquet"), made)
        for name in ("a.json", "a.parquet"):
            found, rejected = read_samples(Path(folder, name), labelled=True)
            assert not rejected
            for sample, known in zip(found, made, strict=True):
                assert sample.id == known.id and sample.meta["score"] == known.meta["score"]
                assert (sample.messages, sample.tools, sample.template_kwargs) == (
                    known.messages,
                    known.tools,
                    known.template_kwargs,
                )


@FEW
@given(samples())
def test_datasets_reads_the_same_chats_from_parquet(made: list[Sample]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_parquet(
            Path(folder, "a.parquet"),
            [Sample(s.id, s.messages, {}, tools=s.tools, template_kwargs=s.template_kwargs) for s in made],
        )
        text_alone = pa.types.is_struct(column(Path(folder, "a.parquet")))
        for row, sample in zip(by_datasets(Path(folder, "a.parquet"), Path(folder, "c")), made, strict=True):
            same_chat(row, sample, filled=text_alone)
            # What TRL passes on as keywords.
            assert row.get("chat_template_kwargs", {}) is not None


@settings(FEW, derandomize=True)
@given(samples())
def test_datasets_reads_the_same_chats_from_json(made: list[Sample]) -> None:
    rows = [chat_row(Sample(s.id, s.messages, {}, tools=s.tools, template_kwargs=s.template_kwargs)) for s in made]
    # The library takes a column of texts that look like dates for one of times.
    rows = json.loads(json.dumps(rows).replace("2024-05-01", "a day"))
    with tempfile.TemporaryDirectory() as folder:
        write_json_rows(Path(folder, "a.json"), rows)
        for found, row in zip(by_datasets(Path(folder, "a.json"), Path(folder, "c")), rows, strict=True):
            assert found["messages"] == row["messages"]
            assert (found.get("tools") or []) == row.get("tools", [])
            assert (found.get("chat_template_kwargs") or {}) == row.get("chat_template_kwargs", {})


def test_datasets_and_trl_read_an_agents_chat_from_both_files(tmp_path: Path) -> None:
    made = [
        Sample("1", AGENT, {"score": 1}, tools=TOOLS, template_kwargs={"think": False}),
        Sample("2", ({"role": "system", "content": "s"}, *PLAIN), {"score": 2}),
        Sample("3", AGENT[:2], tools=TOOLS[:1]),
    ]
    write_paper_json(tmp_path / "a.json", made)
    write_parquet(tmp_path / "a.parquet", made)
    for name in ("a.json", "a.parquet"):
        for row, sample in zip(by_datasets(tmp_path / name, tmp_path / "c"), made, strict=True):
            same_chat(row, sample)
            assert is_conversational(row)
    # Arguments are objects: a template would render a text as a text.
    row = by_datasets(tmp_path / "a.parquet", tmp_path / "c")[0]
    assert row["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"animal": "spider", "n": 1}
    streamed = datasets.load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), split="train", streaming=True)
    assert [each["messages"] for each in streamed] == [list(map(file_message, each.messages)) for each in made]
    assert by_pandas(tmp_path / "a.parquet")[0]["messages"] == list(map(file_message, AGENT))


def test_pairs_with_calls_come_back(tmp_path: Path) -> None:
    calling: Message = {"role": "assistant", "content": "", "tool_calls": CALLS[:1]}
    pairs = [
        Preference("1", AGENT[:3], AGENT[4:], (calling,), 0.1, {"margin": math.nan, "note": {}}, tools=TOOLS),
        Preference("2", PLAIN[:1], PLAIN[1:], ({"role": "assistant", "content": "x"},)),
    ]
    write_pairs_json(tmp_path / "a.json", pairs)
    write_pairs_parquet(tmp_path / "a.parquet", pairs)
    for name in ("a.json", "a.parquet"):
        ours = list(rows_of(tmp_path / name))
        for rows in (ours, by_datasets(tmp_path / name, tmp_path / "c")):
            for row, pair in zip(rows, pairs, strict=True):
                written = pair_row(pair)
                assert all(row[side] == written[side] for side in ("prompt", "chosen", "rejected"))
                assert is_conversational(row)
        assert ours[0]["note"] == {} and ours[0]["margin"] is None


# --- fields of every kind -------------------------------------------------------------------------------------


def test_every_field_is_written_as_json_can_hold_it(tmp_path: Path) -> None:
    fields = [
        {
            "metadata": {},
            "number": 2**80,
            "share": math.nan,
            "mixed": 1,
            "inner": {"a": {}},
            "list": [],
            "half": "\ud800x",
        },
        {"metadata": {}, "number": 1, "share": math.inf, "mixed": "a", "inner": {"b": [{}]}, "list": [None]},
        {"metadata": {}, "share": 0.5, "mixed": [1], "set": {3}, "array": np.arange(2), "bytes": b"\xff"},
        {"deep": {"a": [[[[[{"b": {}}]]]]]}},
    ]
    made = [
        Sample(f"r{n}", PLAIN, {str(name) if name != 5 else "five": value for name, value in each.items()})
        for n, each in enumerate(fields)
    ]
    write_paper_json(tmp_path / "a.json", made)
    write_parquet(tmp_path / "a.parquet", made)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} stands in JSON")

    rows = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert rows[0]["metadata"] == {} and rows[0]["number"] == 2**80 and rows[0]["half"] == "\ufffdx"
    assert rows[0]["share"] is rows[1]["share"] is None and rows[2]["share"] == 0.5
    assert rows[2]["set"] == [3] and rows[2]["array"] == [0, 1] and rows[2]["bytes"] == "/w=="
    tables = list(rows_of(tmp_path / "a.parquet"))
    assert [row["metadata"] for row in tables] == [{}, {}, {}, None]
    assert tables[3]["deep"] == fields[3]["deep"] and tables[1]["inner"] == {"b": [{}]}
    assert [row["mixed"] for row in tables] == [1, "a", [1], None] and tables[0]["number"] == str(2**80)
    assert len(by_datasets(tmp_path / "a.parquet", tmp_path / "c")) == len(pd.read_parquet(tmp_path / "a.parquet")) == 4


@FEW
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["x", "y"]),
            st.recursive(VALUES | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4),
            max_size=2,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_fields_can_be_written(fields: list[dict[str, Any]]) -> None:
    made = [Sample(f"r{n}", PLAIN, each) for n, each in enumerate(fields)]
    assert writable(made, "label") == (made, [])
    with tempfile.TemporaryDirectory() as folder:
        write_paper_json(Path(folder, "a.json"), made)
        write_parquet(Path(folder, "a.parquet"), made)
        assert [row["id"] for row in rows_of(Path(folder, "a.parquet"))] == [each.id for each in made]
        found = [{name: row[name] for name in ("x", "y") if name in row} for row in rows_of(Path(folder, "a.json"))]
        assert found == [written_meta(each) for each in made]


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def test_what_no_file_can_hold_is_rejected_before_it_is_asked() -> None:
    bad = [
        Sample("deep", PLAIN, {"note": nested(2000)}),
        Sample(
            "nan",
            (
                *AGENT[:1],
                {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"x": math.nan}}]},
            ),
        ),
        Sample("half", PLAIN, tools=({"type": "function", "function": {"name": "\ud800"}},)),
        Sample("bytes", PLAIN, template_kwargs={"x": b"x"}),
    ]
    kept, rejected = writable([Sample("good", PLAIN, {"note": nested(60)}), *bad], "label")
    assert [sample.id for sample in kept] == ["good"]
    assert {each.id: each.reason for each in rejected} == dict.fromkeys(
        ["deep", "nan", "half", "bytes"], "unwritable_row"
    )
    assert "field 'note'" in rejected[0].detail and "surrogate" in rejected[2].detail
    with pytest.raises(DataError, match="none of 4 rows can be written"):
        writable(bad, "label")


def test_deep_fields_are_written(tmp_path: Path) -> None:
    made = [Sample("1", PLAIN, {"note": nested(60)})]
    write_parquet(tmp_path / "a.parquet", made)
    assert next(iter(rows_of(tmp_path / "a.parquet")))["note"] == nested(60)


def test_plain_values_stay_the_same_objects() -> None:
    for value in ("x", 3, None, True, 0.5):
        assert plain_json(value) is value


def test_a_file_with_a_rich_chat_has_one_shape_for_all_rows(tmp_path: Path) -> None:
    plain = Sample("a", ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}))
    rich = Sample("b", plain.messages, template_kwargs={"enable_thinking": False})
    write_paper_json(tmp_path / "mixed.json", [plain, rich])
    mixed = json.loads((tmp_path / "mixed.json").read_text())
    assert [sorted(row) for row in mixed] == [["chat_template_kwargs", "id", "messages"]] * 2
    assert [row["chat_template_kwargs"] for row in mixed] == [{}, {"enable_thinking": False}]
    found, _ = read_samples(tmp_path / "mixed.json", labelled=True)
    assert [(row.messages, row.template_kwargs) for row in found] == [
        (plain.messages, {}),
        (plain.messages, {"enable_thinking": False}),
    ]
    write_paper_json(tmp_path / "plain.json", [plain])
    assert json.loads((tmp_path / "plain.json").read_text()) == [{"id": "a", "instruction": "Hi", "output": "Yo"}]
