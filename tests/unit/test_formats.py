"""Rows in the usual shapes: a malformed row is rejected whole, and never costs the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easydistill.data.messages import Message
from easydistill.data.reading import read_samples
from easydistill.data.records import Sample
from easydistill.data.writing import paper_row, write_paper_json, write_parquet
from easydistill.errors import DataError

GOOD = {"instruction": "hi", "output": "ho"}


def lines(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"instruction": "x", "input": 5, "output": "y"}, "`input` is not text"),
        ({"instruction": "x", "input": ["a"], "output": "y"}, "`input` is not text"),
        ({"instruction": "x", "system": 5, "output": "y"}, "`system` is not text"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}], "system": []}, "`system`"),
        ({"instruction": "x", "history": 5, "output": "y"}, "`history` must be pairs"),
        ({"instruction": "x", "history": "ab", "output": "y"}, "`history` must be pairs"),
        ({"instruction": "x", "history": [["a"]], "output": "y"}, "`history` must be pairs"),
        ({"instruction": "x", "history": [["a", None]], "output": "y"}, "`history` must be pairs"),
        ({"instruction": "x\ud800", "output": "y"}, "surrogate"),
        ({"instruction": "x", "output": "\udfff"}, "surrogate"),
        ({"messages": [{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "y"}]}, "surrogate"),
        ({"instruction": "x", "output": "y", "reasoning_content": "\ud800"}, "surrogate"),
        ({"instruction": ["x"], "output": "y"}, "`instruction` is not text"),
        ({"instruction": "x", "output": {"text": "y"}}, "`output` is not text"),
        ({"messages": "hi"}, "`messages` must be a list"),
        ({"messages": [5]}, "needs a role"),
        ({"messages": [{"role": [], "content": "x"}]}, "needs a role"),
        ({"conversations": [{"from": {}, "value": "x"}]}, "is from {}"),
        ({"messages": [{"role": "user"}]}, "content of the user message"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no answer to train on"),
        ({"conversations": {}}, "`conversations` must be a list"),
        ({"conversations": [5]}, "is not an object"),
        ({"conversations": [{"from": "human", "value": None}]}, "value of a turn"),
        ({"instruction": float("nan"), "output": "y"}, "`instruction` is not text"),
        (True, "a row is an object, not bool"),
        (3.5, "a row is an object, not float"),
        ('"\\ud800"\n', "surrogate"),
        ("not json\n", "not valid JSON"),
        ("[" * 100_000 + "\n", "not valid JSON"),
        ('{"instruction": "x"\n', "not valid JSON"),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "replace").decode().strip(),
)
def test_a_malformed_row_is_rejected_whole_and_costs_no_other(row: Any, problem: str, tmp_path: Path) -> None:
    samples, rejected = read_samples(lines(tmp_path, GOOD, row, GOOD), labelled=True)
    assert [sample.answer for sample in samples] == ["ho", "ho"]
    assert [each.reason for each in rejected] == ["malformed_row"]
    assert problem in rejected[0].detail
    assert "row 2:" in rejected[0].detail
    # What was received can be written down again.
    json.dumps(rejected[0].as_row(), allow_nan=False)


def test_bytes_that_are_not_utf8_cost_one_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"instruction": "a"}\n{"instruction": "\xff"}\n\xef\xbb\xbf{"instruction": "b"}\r\n')
    samples, rejected = read_samples(path, labelled=False)
    assert [sample.messages[0]["content"] for sample in samples] == ["a", "b"]
    assert len(rejected) == 1


@pytest.mark.parametrize("key", ["data", "rows", "examples", "instances"])
def test_rows_may_be_wrapped(key: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps({"version": 1, key: [GOOD, GOOD]}))
    assert len(read_samples(tmp_path / "r.json", labelled=True)[0]) == 2


def test_json_lines_in_a_file_named_json(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("".join(json.dumps(GOOD) + "\n" for _ in range(3)))
    assert len(read_samples(tmp_path / "r.json", labelled=True)[0]) == 3
    (tmp_path / "one.json").write_text(json.dumps(GOOD))
    assert len(read_samples(tmp_path / "one.json", labelled=True)[0]) == 1


def test_line_separators_inside_text_do_not_end_a_row(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\x85d\x0be"
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"instruction": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_samples(path, labelled=False)[0][0].messages[0]["content"] == text


def test_an_answer_in_the_file_is_dropped_if_the_teacher_answers(tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
        {"role": "assistant", "content": "e"},
    ]
    samples, _ = read_samples(lines(tmp_path, {"messages": chat}), labelled=False)
    assert [message["content"] for message in samples[0].messages] == ["a", "b", "c"]
    assert samples[0].answer is None


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        ({"instruction": "a", "output": "b", "answer": "18"}, "18"),
        ({"question": "a", "response": "b", "answer": 18}, 18),
        ({"messages": [{"role": "user", "content": "a"}], "answer": "18"}, "18"),
        ({"instruction": "a", "output": "b", "answer": "18", "final_answer": "19"}, "19"),
        ({"instruction": "a", "answer": "18"}, None),
    ],
)
def test_an_answer_beside_the_chain_is_the_final_one(row: dict[str, Any], kept: Any, tmp_path: Path) -> None:
    (sample,), _ = read_samples(lines(tmp_path, row), labelled=None)
    assert sample.meta.get("final_answer") == kept
    assert paper_row(sample).get("final_answer") == kept


def test_the_limit_counts_rows_of_the_file(tmp_path: Path) -> None:
    samples, rejected = read_samples(lines(tmp_path, GOOD, {}, GOOD, GOOD), labelled=True, limit=3)
    assert (len(samples), len(rejected)) == (2, 1)


@pytest.mark.parametrize(
    ("own", "identity"),
    [
        ("row-7", "row-7"),
        (7, "7"),
        ("", None),
        (None, None),
        (True, None),
        (1.5, None),
        (["a"], None),
        ("\ud800", None),
    ],
)
def test_a_usable_id_of_a_row_is_kept(own: Any, identity: str | None, tmp_path: Path) -> None:
    plain = read_samples(lines(tmp_path, GOOD), labelled=True)[0][0].id
    found = read_samples(lines(tmp_path, {**GOOD, "id": own}), labelled=True)[0][0].id
    assert found == (identity if identity is not None else plain)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_unreadable_paths_are_errors(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(DataError, match="no file of rows"):
        read_samples(tmp_path / f"folder{suffix}", labelled=False)
    (tmp_path / f"empty{suffix}").write_bytes(b"")
    with pytest.raises(DataError):
        read_samples(tmp_path / f"empty{suffix}", labelled=False)


def test_a_damaged_parquet_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_parquet(path, [Sample(str(n), (_said("user", "x" * n), _said("assistant", "y"))) for n in range(1, 900)])
    whole = path.read_bytes()
    path.write_bytes(whole[:40] + bytes(len(whole) // 2) + whole[40 + len(whole) // 2 :])
    with pytest.raises(DataError, match="Parquet"):
        read_samples(path, labelled=True)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="Parquet"):
        read_samples(path, labelled=True)


def test_parquet_with_other_columns(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = [
        {"prompt": "a", "response": "b", "extra": b"\x00", "id": 5},
        {"prompt": "a", "response": None, "extra": None, "id": 6},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    samples, rejected = read_samples(tmp_path / "r.parquet", labelled=True)
    assert [(sample.id, sample.answer) for sample in samples] == [("5", "b")]
    assert "no answer" in rejected[0].detail


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chats=st.lists(st.tuples(st.none() | texts, st.lists(st.tuples(texts, texts), min_size=1, max_size=3)), min_size=1)
)
def test_written_rows_read_the_same_in_every_format(chats: list[Any], tmp_path: Path) -> None:
    samples = [
        Sample(
            f"id-{number}",
            (
                *((_said("system", system),) if system else ()),
                *(message for pair in turns for message in (_said("user", pair[0]), _said("assistant", pair[1]))),
            ),
        )
        for number, (system, turns) in enumerate(chats)
    ]
    write_paper_json(tmp_path / "a.json", samples)
    write_parquet(tmp_path / "a.parquet", samples)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(paper_row(sample)) + "\n" for sample in samples))
    for name in ("a.json", "a.parquet", "a.jsonl"):
        found, rejected = read_samples(tmp_path / name, labelled=True)
        assert not rejected
        assert [(each.id, each.messages) for each in found] == [(each.id, each.messages) for each in samples]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    row=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "id",
                        "instruction",
                        "input",
                        "output",
                        "prompt",
                        "system",
                        "history",
                        "messages",
                        "conversations",
                        "role",
                        "content",
                        "from",
                        "value",
                    ]
                ),
                inner | st.sampled_from(["user", "assistant", "human", "gpt"]),
                max_size=4,
            )
        ),
        max_leaves=8,
    ),
    labelled=st.booleans(),
)
def test_no_row_breaks_the_reader(row: Any, labelled: bool, tmp_path: Path) -> None:
    samples, rejected = read_samples(lines(tmp_path, GOOD, json.dumps(row) + "\n"), labelled=labelled)
    assert len(samples) + len(rejected) == 2
    assert len({each.id for each in (*samples, *rejected)}) == 2
    for sample in samples:
        json.dumps(paper_row(sample) if labelled else sample.messages, ensure_ascii=False).encode()


def test_real_data_is_read_without_a_rejection(corpus: Path) -> None:
    for name in ("gsm8k_train.jsonl", "p3_test.jsonl", "humaneval.jsonl", "ifeval_100.jsonl"):
        samples, rejected = read_samples(corpus / name, labelled=False)
        assert len(samples) > 20, name
        assert not rejected, (name, rejected[0])
        assert len({sample.id for sample in samples}) == len(samples)
