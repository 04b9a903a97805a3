"""Containers of rows: every one gives the rows that went in, and `validate` tells those that cannot be read."""

from __future__ import annotations

import bz2
import csv
import datetime
import decimal
import gzip
import io
import json
import lzma
import os
import shutil
import time
import tracemalloc
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easydistill.data.files import hash_file
from easydistill.data.reading import read_samples
from easydistill.data.row_files import BrokenRow, rows_of
from easydistill.data.row_files.identity import hash_rows
from easydistill.data.row_files.places import Format, place_of
from easydistill.data.row_files.wholeness import NotWhole, check_whole
from easydistill.engine.checks import unreadable_rows
from easydistill.errors import DataError

ROWS = [{"instruction": f"zwölf × {n}\n\u2028", "output": str(n), "id": f"r{n}"} for n in range(5)]


def json_text(rows: list[Any]) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def jsonl_text(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def csv_text(rows: list[Any], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def zst(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue().to_pybytes())


TEXTS: dict[str, Callable[[list[Any]], bytes]] = {
    ".json": json_text,
    ".jsonl": jsonl_text,
    ".ndjson": jsonl_text,
    ".csv": csv_text,
    ".tsv": lambda rows: csv_text(rows, "\t"),
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zst,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def issues(where: Path | str) -> list[tuple[str, str]]:
    return [(issue.problem, issue.hint) for issue in unreadable_rows("dataset.instruction_path", str(where))]


# --- one file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("suffix", TEXTS)
def test_every_format_of_text_under_every_compression(suffix: str, packing: str, tmp_path: Path) -> None:
    path = tmp_path / f"Rows.v1{suffix.upper()}{packing}"
    path.write_bytes(PACKERS[packing](TEXTS[suffix](ROWS)))
    assert list(rows_of(path)) == ROWS
    assert list(rows_of(str(path))) == ROWS
    assert issues(path) == []
    assert hash_rows(path) == hash_file(path)


@pytest.mark.parametrize("packing", [".gz", ".zst", ".bz2", ".xz"])
def test_files_compressed_in_pieces_are_read_to_their_end(packing: str, tmp_path: Path) -> None:
    path = tmp_path / f"r.jsonl{packing}"
    path.write_bytes(b"".join(PACKERS[packing](jsonl_text([row])) for row in ROWS))
    assert list(rows_of(path)) == ROWS


@pytest.mark.parametrize("packing", [".gz", ".zst", ".bz2", ".xz"])
def test_a_compressed_file_that_was_cut_is_an_error(packing: str, tmp_path: Path) -> None:
    path = tmp_path / f"r.jsonl{packing}"
    content = PACKERS[packing](jsonl_text([{"instruction": os.urandom(64).hex()} for _ in range(200)]))
    path.write_bytes(content[: len(content) - 12])
    with pytest.raises(DataError, match=r"r\.jsonl.*cannot be read"):
        list(rows_of(path))


def test_tables(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "r.parquet", row_group_size=2)
    for new in (pa.ipc.new_stream, pa.ipc.new_file):
        with new(str(tmp_path / f"{new.__name__}.arrow"), table.schema) as writer:
            writer.write_table(table)
    for name in ("r.parquet", "new_stream.arrow", "new_file.arrow"):
        assert list(rows_of(tmp_path / name)) == ROWS
        assert issues(tmp_path / name) == []


def test_csv_keeps_texts_as_they_are(tmp_path: Path) -> None:
    long = "x" * 300_000
    rows = [
        {"instruction": 'say "a", b;\r\nc', "output": "007", "": "0", "note": ""},
        {"instruction": "2024-05-01", "output": long, "": "1", "note": "NaN"},
        {"instruction": " 1.50 ", "output": "null", "": "2", "note": "True"},
    ]
    for delimiter in (",", ";", "\t"):
        (tmp_path / "r.csv").write_bytes(b"\xef\xbb\xbf" + csv_text(rows, delimiter))
        kept = [{name: value for name, value in row.items() if name and value} for row in rows]
        assert list(rows_of(tmp_path / "r.csv")) == kept


def test_columns_of_numbers_and_flags_hold_them(tmp_path: Path) -> None:
    """A label that stayed the text "False" would count as true."""
    (tmp_path / "r.csv").write_text(
        "prompt,chosen,rejected,beta,score_chosen,label,pass_rate,note\n6*7?,42,41,0.50,1e3,False,1,7\nq,a,b,x,-7,Math,.5,\n"
    )
    first, second = rows_of(tmp_path / "r.csv")
    assert first == {
        "prompt": "6*7?",
        "chosen": "42",
        "rejected": "41",
        "beta": 0.5,
        "score_chosen": 1000.0,
        "label": False,
        "pass_rate": 1,
        "note": "7",
    }
    assert (second["beta"], second["score_chosen"], second["label"], second["pass_rate"]) == ("x", -7, "Math", 0.5)


def test_a_line_of_csv_with_other_cells_costs_one_row(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("instruction,output\na,b\nc,d,e\n\nf\ng,h\n")
    samples, rejected = read_samples(tmp_path / "r.csv", labelled=True)
    assert [sample.answer for sample in samples] == ["b", "h"]
    assert ["cells, the header 2" in each.detail for each in rejected] == [True, True]


@pytest.mark.parametrize(
    ("text", "problem"),
    [('a,b\n"x', "not valid CSV"), ("a,b,a\n1,2,3\n", "names 'a' twice"), ('a\n"x"y\n', "not valid CSV")],
)
def test_csv_that_cannot_be_told_apart_is_an_error(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(DataError, match=problem):
        list(rows_of(tmp_path / "r.csv"))


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", []),
        (" \n ", []),
        ("[]", []),
        (" [ ] \n", []),
        ('\ufeff[{"a": 1},\n{"a": 2}]', [{"a": 1}, {"a": 2}]),
        ("[1, 23,4]", [1, 23, 4]),
        ('{"a": 1}', [{"a": 1}]),
        ('{\n "a": 1\n}\n', [{"a": 1}]),
        ('{"a": 1}\n\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ('{"a": 1}\n  {"a": 2}', [{"a": 1}, {"a": 2}]),
        ('{\n "a": 1\n}\n{\n "a": 2\n}\n', [{"a": 1}, {"a": 2}]),
        ('{"data": [{"a": 1}]}', [{"a": 1}]),
        ('"x"\n"y"\n', ["x", "y"]),
    ],
)
def test_json_in_all_its_layouts(text: str, rows: list[Any], tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text, encoding="utf-8")
    assert list(rows_of(tmp_path / "r.json")) == rows


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1, 2", "behind a row, line 1"),
        ("[1,\n2,\n]", "line 3"),
        ("[1,\n 2 3]", "line 2"),
        ("[1]\n[2]", "Extra data behind the array, line 2"),
        ('[{"a": 1},\n{"a": }]', "line 2"),
        ("[" * 100_000, "not valid JSON"),
        ("nothing", "not valid JSON"),
        ("7", "an array of rows is needed"),
        ('{\n "a": 1\n}\n7\n', "an object should begin here"),
    ],
)
def test_json_that_is_none_is_an_error_with_its_line(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError, match=problem):
        list(rows_of(tmp_path / "r.json"))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=20,
        ),
        max_size=12,
    ),
    indent=st.sampled_from([None, 0, 3]),
    chunk=st.integers(1, 40),
)
def test_arrays_are_read_in_pieces_of_any_size(
    rows: list[Any], indent: int | None, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("easydistill.data.row_files.json_text._CHUNK", chunk)
    (tmp_path / "r.json").write_text(json.dumps(rows, indent=indent), encoding="utf-8")
    assert list(rows_of(tmp_path / "r.json")) == rows


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".jsonl.gz", ".csv", ".parquet"])
def test_memory_stays_flat(suffix: str, tmp_path: Path) -> None:
    """100 MB of text, of which a thousandth part may be in hand."""
    rows = [{"instruction": "x" * 100, "output": f"{n} " * 700} for n in range(20_000)]
    path = tmp_path / f"r{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2_000)
    else:
        plain = suffix.removesuffix(".gz")
        path.write_bytes(PACKERS[suffix.removeprefix(plain)](TEXTS[plain](rows)))
    total = sum(len(row["output"]) for row in rows)
    del rows
    tracemalloc.start()
    count = sum(1 for _ in rows_of(path))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert most < total / 5


# --- values of Arrow ------------------------------------------------------------------------------------------


def test_keys_that_arrow_filled_are_dropped_and_nulls_in_json_stay(tmp_path: Path) -> None:
    calls = [{"function": {"name": "a", "arguments": {"x": 1}}}, {"function": {"name": "b", "arguments": {"y": ["z"]}}}]
    plain = [
        [{"role": "user", "content": "q"}],
        [{"role": "assistant", "content": "", "tool_calls": calls}, {"role": "tool", "content": "r", "name": "a"}],
    ]
    written = [{"role": "user", "content": None, "arguments": {"x": None}}]
    table = pa.table(
        {
            "messages": pa.array(plain),
            "json": pa.array([[json.dumps(each) for each in written]] * 2).cast(pa.list_(pa.json_())),
            "nothing": pa.array([None, None]),
        }
    )
    pq.write_table(table, tmp_path / "r.parquet")
    assert pq.read_table(tmp_path / "r.parquet").to_pylist()[0]["messages"][0]["tool_calls"] is None
    found = list(rows_of(tmp_path / "r.parquet"))
    assert [row["messages"] for row in found] == plain
    assert [row["json"] for row in found] == [written, written]


def test_features_of_datasets_tell_json_text_and_old_sequences(tmp_path: Path) -> None:
    features = {
        "tools": {"_type": "List", "feature": {"_type": "Json"}},
        "note": {"_type": "Value", "dtype": "string"},
        "conversations": {
            "_type": "Sequence",
            "feature": {name: {"_type": "Value", "dtype": "string"} for name in ("from", "value")},
        },
    }
    table = pa.table(
        {
            "tools": pa.array([['{"a": null}']]),
            "note": pa.array(['{"a": 1}']),
            "conversations": pa.array([{"from": ["human", "gpt"], "value": ["q", "a"]}]),
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "r.parquet")
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert list(rows_of(tmp_path / "r.parquet")) == [
        {"tools": [{"a": None}], "note": '{"a": 1}', "conversations": turns}
    ]


def test_values_that_json_lacks_become_ones_that_it_has(tmp_path: Path) -> None:
    number = uuid.UUID(int=5)
    day = datetime.datetime(2024, 5, 1, 12, 30, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "day": pa.array([day.date()]),
            "time": pa.array([day]),
            "naive": pa.array([1_714_566_600_000_000_123], pa.timestamp("ns")),
            "nested": pa.array([[{"at": day}]]),
            "price": pa.array([decimal.Decimal("0.10")]),
            "count": pa.array([decimal.Decimal("7")]),
            "exact": pa.array([decimal.Decimal("0.1234567890123456789")]),
            "text": pa.array(["zwölf".encode()]),
            "bytes": pa.array([b"\xff\x00"]),
            "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
            "maps": pa.array(
                [[{"m": [("a", day)]}]], pa.list_(pa.struct([("m", pa.map_(pa.string(), pa.timestamp("s", "UTC")))]))
            ),
            "kind": pa.array(["x"]).dictionary_encode(),
            "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([number.bytes], pa.binary(16))),
            "vector": pa.array([[1.5, 2.5]], pa.list_(pa.float32(), 2)),
            "view": pa.array([[{"at": day}]], pa.list_view(pa.struct([("at", pa.timestamp("s", "UTC"))]))),
            "texts": pa.array([["a"]], pa.large_list(pa.string_view())),
            "tensor": pa.ExtensionArray.from_storage(
                pa.fixed_shape_tensor(pa.int64(), (2,)), pa.array([[1, 2]], pa.list_(pa.int64(), 2))
            ),
        }
    )
    with pa.ipc.new_file(str(tmp_path / "r.arrow"), table.schema) as writer:
        writer.write_table(table)
    (row,) = rows_of(tmp_path / "r.arrow")
    assert row == {
        "day": "2024-05-01",
        "time": "2024-05-01T12:30:00+00:00",
        "naive": "2024-05-01T12:30:00",
        "nested": [{"at": "2024-05-01T12:30:00+00:00"}],
        "price": 0.1,
        "count": 7,
        "exact": "0.1234567890123456789",
        "text": "zwölf",
        "bytes": "/wA=",
        "map": {"a": 1},
        "maps": [{"m": {"a": "2024-05-01T12:30:00+00:00"}}],
        "kind": "x",
        "uuid": str(number),
        "vector": [1.5, 2.5],
        "view": [{"at": "2024-05-01T12:30:00+00:00"}],
        "texts": ["a"],
        "tensor": [1, 2],
    }
    json.dumps(row, allow_nan=False)


# --- several files --------------------------------------------------------------------------------------------


def shards(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        packing = path.suffix if path.suffix in PACKERS else ""
        path.write_bytes(PACKERS[packing](TEXTS[Path(name.removesuffix(packing)).suffix]([ROWS[number]])))


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    shards(tmp_path / "s", "part-00001.jsonl", "part-00000.jsonl.gz", "part-00002.ndjson.zst")
    for beside in ("README.md", "_SUCCESS", ".part-00000.jsonl.crc", "LICENSE", "notes.txt"):
        (tmp_path / "s" / beside).write_text("x")
    assert [row["id"] for row in rows_of(tmp_path / "s")] == ["r1", "r0", "r2"]
    assert issues(tmp_path / "s") == []
    assert issues(f"{tmp_path}/s/") == []


def test_a_glob_takes_what_it_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path, "s/b.json", "s/a.csv", "s/deep/c.jsonl", "t.jsonl")
    monkeypatch.chdir(tmp_path)
    assert [row["id"] for row in rows_of("s/*.*")] == ["r1", "r0"]
    assert [row["id"] for row in rows_of("**/*.jsonl")] == ["r2", "r3"]
    assert [row["id"] for row in rows_of(str(tmp_path / "s" / "[ab].*"))] == ["r1", "r0"]
    assert issues("s/*.*") == issues("**/*.json*") == []
    # A file of this very name is that file.
    shards(tmp_path, "x[1].jsonl")
    assert [row["id"] for row in rows_of("x[1].jsonl")] == ["r0"]


def test_a_rejected_row_of_several_files_is_found_again(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "x"}\n')
    (tmp_path / "b.jsonl").write_text('{"instruction": "y"}\n{"instr\n')
    samples, rejected = read_samples(tmp_path, labelled=False)
    assert len(samples) == 2
    assert rejected[0].detail.startswith(f"{tmp_path / 'b.jsonl'}, row 2: not valid JSON")
    assert len(read_samples(tmp_path, labelled=False, limit=2)[0]) == 2


def test_the_identity_of_files_is_their_content_and_names(tmp_path: Path) -> None:
    shards(tmp_path / "a", "x.jsonl", "y.jsonl")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert hash_rows(tmp_path / "a") == hash_rows(tmp_path / "b") == hash_rows(f"{tmp_path}/b/*.jsonl")
    assert hash_rows(tmp_path / "a" / "x.jsonl") == hash_file(tmp_path / "a" / "x.jsonl")
    before = hash_rows(tmp_path / "a")
    (tmp_path / "a" / "y.jsonl").rename(tmp_path / "a" / "w.jsonl")
    assert hash_rows(tmp_path / "a") != before
    (tmp_path / "b" / "y.jsonl").write_bytes(jsonl_text([ROWS[4]]))
    assert hash_rows(tmp_path / "b") != before


def test_a_file_is_hashed_once_as_long_as_it_does_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(jsonl_text(ROWS))
    asked: list[Path] = []

    def counted(path: Path) -> str:
        asked.append(path)
        return hash_file(path)

    monkeypatch.setattr("easydistill.data.row_files.identity.hash_file", counted)
    # One just written may be written again within a tick of the clock.
    assert hash_rows(path) == hash_rows(path)
    assert len(asked) == 2
    monkeypatch.setattr("easydistill.data.row_files.identity._SETTLED_NS", 0)
    time.sleep(0.01)
    first = hash_rows(path)
    assert hash_rows(path) == first and len(asked) == 3
    path.write_bytes(jsonl_text(ROWS[1:]))
    assert hash_rows(path) != first


# --- what cannot be read is told before a run -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "problem", "hint"),
    [
        ("r.txt", b"a", "suffix is not that of a supported format", ".jsonl"),
        ("r", b"a", "suffix is not that", "no suffix"),
        ("r.gz", gzip.compress(b"[]"), "suffix is not that", "rows.jsonl.gz"),
        ("r.parquet.gz", gzip.compress(b"[]"), "suffix is not that", "not compressed"),
        ("r.zip", b"PK\x03\x04", "suffix is not that", "unpack"),
        ("r.xlsx", b"PK\x03\x04", "suffix is not that", ".csv"),
        ("r.json", b"", "the file is empty", ""),
        ("r.parquet", b"[]", "is not a Parquet file", ""),
        ("r.jsonl.gz", b"{}", "is not a gzip file", ""),
        ("r.jsonl.zst", gzip.compress(b"{}"), "is not a Zstandard file", ""),
        ("r.jsonl", gzip.compress(b"{}"), "is a gzip file", "….jsonl.gz"),
        ("r.csv", b"PAR1....", "is a Parquet file", "parquet"),
        ("r.csv", "a,b".encode("utf-16"), "is not UTF-8", "UTF-8"),
        ("r.json", b"<!DOCTYPE html><html>", "is a web page", "download"),
        ("r.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer", "git lfs pull"),
        ("r.json", b"instruction,output", "is not JSON", "[ or {"),
        ("r.jsonl", b'[\n{"instruction":\n "a"}\n]', "not a line each", "….json"),
        ("r.jsonl", b'{\n "instruction": "a"\n}\n', "not a line each", "….json"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_a_file_that_is_not_what_it_says(name: str, content: bytes, problem: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    ((found, advice),) = issues(tmp_path / name)
    assert problem in found and hint in advice
    with pytest.raises(DataError):
        read_samples(tmp_path / name, labelled=False)


@pytest.mark.parametrize("packing", [".gz", ".zst", ".bz2", ".xz"])
def test_a_compressed_file_that_is_cut_or_damaged_is_told_before_it_is_read(packing: str, tmp_path: Path) -> None:
    path = tmp_path / f"r.jsonl{packing}"
    content = PACKERS[packing](jsonl_text([{"instruction": os.urandom(64).hex()} for _ in range(500)]))
    for part in (content, content + content, PACKERS[packing](b'{"instruction": "short"}\n')):
        path.write_bytes(part)
        assert issues(path) == []
    for part in (content[:-12], content[: len(content) // 2], content + content[:-12], content[:20]):
        path.write_bytes(part)
        ((found, advice),) = issues(path)
        assert "cut off or damaged" in found and "again" in advice
        with pytest.raises(DataError):
            list(rows_of(path))
    path.write_bytes(content[:50] + bytes(200) + content[250:])
    if packing != ".zst":
        assert "cut off or damaged" in issues(path)[0][0]


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz"])
@pytest.mark.parametrize(
    ("content", "problem"), [(b"<html><body>", "is a web page"), (b'[\n{"instruction": "a"}\n]', "not a line each")]
)
def test_what_is_compressed_is_looked_at_too(packing: str, content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / f"r.jsonl{packing}"
    path.write_bytes(PACKERS[packing](content))
    assert problem in issues(path)[0][0]


def test_an_empty_compressed_file(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(b""))
    assert "it is empty" in issues(tmp_path / "r.jsonl.gz")[0][0]
    (tmp_path / "s.jsonl.gz").write_bytes(gzip.compress(b'{"instruction": "a"}\n'))
    assert issues(tmp_path) == []


def zstd_stream(text: bytes) -> bytes:
    """Compressed piece by piece: a frame that does not say how long its text is."""
    made = pa.BufferOutputStream()
    with pa.CompressedOutputStream(made, "zstd") as stream:
        stream.write(text)
    return made.getvalue().to_pybytes()


ZSTD_BY_HAND = b"".join(
    [
        b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc",  # a frame to skip
        b"\x28\xb5\x2f\xfd\x00\x58",  # a frame of blocks: its window, no size
        (5 << 3).to_bytes(3, "little") + b'{"a":',  # a raw block
        ((2 << 3) | (1 << 1)).to_bytes(3, "little") + b"1",  # a byte twice
        ((2 << 3) | 1).to_bytes(3, "little") + b"}\n",  # the last one
    ]
)


@pytest.mark.parametrize(
    "content",
    [
        ZSTD_BY_HAND,
        ZSTD_BY_HAND + ZSTD_BY_HAND,
        zstd_stream(b'{"a": 1}\n'),
        zstd_stream(b'{"a": 1}\n' * 100_000),
        pa.Codec("zstd", compression_level=19).compress(b'{"a": 1}\n' * 100_000, asbytes=True),
        pa.Codec("zstd").compress(b'{"a": 1}\n', asbytes=True),
    ],
    ids=["by hand", "two by hand", "stream", "long stream", "long", "short"],
)
def test_frames_of_zstandard_of_all_kinds(content: bytes, tmp_path: Path) -> None:
    path, named = tmp_path / "r.jsonl.zst", Format(".jsonl", ".zst")
    path.write_bytes(content)
    assert all(row["a"] in (1, 11) for row in rows_of(path))
    check_whole(path, named)
    for cut in (1, 4, 9):
        path.write_bytes(content[:-cut])
        with pytest.raises(NotWhole):
            check_whole(path, named)
    path.write_bytes(content + b"something else")
    with pytest.raises(NotWhole):
        check_whole(path, named)


def test_an_array_of_rows_that_was_cut_is_told_before_it_is_read(tmp_path: Path) -> None:
    path, whole = tmp_path / "r.json", json.dumps([{"instruction": f"Name {n} rivers."} for n in range(9000)]).encode()
    for content in (whole, b"\xef\xbb\xbf \n" + whole + b" \r\n", b"[]", b'{"instruction": "a"}\n{"instruction": "b"}'):
        path.write_bytes(content)
        assert issues(path) == []
    for content in (whole[:-1], whole[: len(whole) // 2], whole[:200], b"["):
        path.write_bytes(content)
        ((found, advice),) = issues(path)
        assert "cut off or damaged" in found and "again" in advice
        with pytest.raises(DataError):
            list(rows_of(path))


@pytest.mark.parametrize("name", ["r.parquet", "r.arrow"])
def test_a_table_that_was_cut_is_told_before_it_is_read(name: str, tmp_path: Path) -> None:
    table, path = pa.Table.from_pylist([{"instruction": "a"}]), tmp_path / name
    if name == "r.parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    assert issues(path) == []
    path.write_bytes(path.read_bytes()[:-20])
    assert "cut off or damaged" in issues(path)[0][0]


def test_places_without_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    shards(tmp_path, "deep/a/x.jsonl", "both/x.json", "both/x.csv", "splits/train-0.jsonl", "splits/my_test.jsonl")
    shards(tmp_path, "odd/x.jsonl")
    (tmp_path / "odd" / "more.xlsx").write_bytes(b"x")
    (tmp_path / "shard").mkdir()
    (tmp_path / "shard" / "a.parquet").write_bytes(b"nope")
    for where, problem, hint in [
        ("nowhere.json", "no such file", "working directory"),
        ("nowhere/*.json", "no file matches it", "working directory"),
        ("empty", "no file of rows in this folder", ".jsonl"),
        ("deep", "in folders below", '"deep/**/*.jsonl"'),
        ("both", ".csv, .json", '"both/*.csv"'),
        ("splits", "several splits are in this folder: test, train", '"splits/train*"'),
        ("odd", "more.xlsx", ".csv"),
        ("odd/*", "more.xlsx", ".csv"),
        ("shard", "a.parquet is not a Parquet file", ""),
        ("s3://bucket/x.json", "no such file", "hf://owner/name"),
        ("hf://owner/name?part=3", "part=3 is not understood", "split=train"),
        ("hf://owner/na me", "not the name of a hub's data set", "hf://owner/name"),
    ]:
        ((found, advice),) = issues(where)
        assert problem in found and hint in advice, (where, found, advice)
        assert found.startswith(json.dumps(where))
        with pytest.raises(DataError):
            list(rows_of(where))
    # The hints lead to rows.
    assert [row["id"] for row in rows_of("deep/**/*.jsonl")] == ["r0"]
    assert [row["id"] for row in rows_of("splits/train*")] == ["r3"]


def test_an_empty_shard_is_no_fault(tmp_path: Path) -> None:
    shards(tmp_path, "a.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"")
    assert issues(tmp_path) == []
    assert len(list(rows_of(tmp_path))) == 1


def test_a_glob_names_files_below_its_fixed_part(tmp_path: Path) -> None:
    shards(tmp_path, "a/x.jsonl", "b/x.jsonl")
    place = place_of(f"{tmp_path}/*/x.jsonl")
    assert [path.relative_to(place.root).as_posix() for path in place.files] == ["a/x.jsonl", "b/x.jsonl"]  # type: ignore[union-attr]


def test_broken_lines_keep_their_text(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n{"b\n'))
    _, broken = rows_of(tmp_path / "r.jsonl.gz")
    assert isinstance(broken, BrokenRow) and broken["text"] == '{"b\n'


def test_a_line_that_was_cut_off_says_so_and_where(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "whole"}\n{"instruction": "cut off\n{"instruction": "whole too"}\n')
    _, broken, _ = rows_of(str(path))
    assert isinstance(broken, BrokenRow)
    assert broken.problem == "not valid JSON: Unterminated string starting at column 17"
