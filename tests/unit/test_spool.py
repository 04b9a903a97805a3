"""Lists on disk, and files of more rows than are held in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from easydistill.data import spool, writing
from easydistill.data.reading import read_rows, samples
from easydistill.data.records import Sample
from easydistill.data.spool import Spool


def test_a_spool_gives_back_what_it_was_given_in_any_order() -> None:
    values = [{"number": number, "text": "é" * (number % 700)} for number in range(5000)]
    held = Spool(values[:2500])
    assert held[0] == values[0], "read before all was added"
    held.extend(values[2500:])
    assert len(held) == 5000
    assert list(held) == values
    assert [held[at] for at in (4999, 3, -1, 2500)] == [values[at] for at in (4999, 3, -1, 2500)]
    assert list(held[10:20:3]) == values[10:20:3]
    with pytest.raises(IndexError):
        held[5000]


def test_it_can_be_added_to_while_it_is_read() -> None:
    held = Spool([1, 2])
    seen = []
    for value in held:
        seen.append(value)
        if value < 3:
            held.append(value + 2)
    assert seen == [1, 2, 3, 4]


def test_long_files_are_read_onto_disk_with_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"Say {number}.", "output": str(number), "weight_kg": number} for number in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = read_rows(path, labelled=True)
    monkeypatch.setattr(samples, "MOST_IN_MEMORY", 7)
    part = read_rows(path, labelled=True)
    assert isinstance(part.samples, Spool)
    assert list(part.samples) == whole.samples


def _sample(number: int, **meta: Any) -> Sample:
    return Sample(f"r{number}", ({"role": "user", "content": f"Say {number}."},), meta)


def test_a_table_of_several_blocks_has_the_columns_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [_sample(number, count=number) for number in range(5)]
    rows += [_sample(5, count=0.5, late="x"), _sample(6, mixed=1), _sample(7, mixed="1"), _sample(8, empty={})]
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "count", "arguments": {"animal": "ant"}}]}
    rows.append(Sample("r9", (*rows[0].messages, call)))  # type: ignore[arg-type]
    monkeypatch.setattr(writing, "BLOCK", 2)
    path = tmp_path / "rows.parquet"
    writing.write_parquet(path, rows)
    found = read_rows(path, labelled=None).samples
    assert [row.messages for row in found] == [row.messages for row in rows]
    assert [row.id for row in found] == [row.id for row in rows]
    assert [found[number].meta["count"] for number in range(6)] == [0, 1, 2, 3, 4, 0.5]
    assert (found[5].meta["late"], found[6].meta["mixed"], found[7].meta["mixed"]) == ("x", 1, "1")
    assert parquet.ParquetFile(path).metadata.num_row_groups == 5


@pytest.mark.parametrize("block", [2, 50])
def test_fields_without_a_common_type_come_back_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """A text does not get quotation marks because another row has a number there."""
    values = ["eight", 8, True, None, {"deep": [1, "x"]}, 0.5]
    monkeypatch.setattr(writing, "BLOCK", block)
    path = tmp_path / "rows.parquet"
    writing.write_parquet(path, [_sample(number, final=value) for number, value in enumerate(values)])
    assert [row.meta.get("final") for row in read_rows(path, labelled=None).samples] == values


def test_integers_of_over_64_bits_do_not_stop_datasets(tmp_path: Path) -> None:
    import datasets

    path = tmp_path / "rows.parquet"
    writing.write_parquet(path, [_sample(1, big=2**70), _sample(2, big="x")])
    found = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert list(found["big"]) == [str(2**70), '"x"']


def test_a_table_of_no_rows_is_a_table(tmp_path: Path) -> None:
    writing.write_parquet(tmp_path / "none.parquet", [])
    assert parquet.read_table(tmp_path / "none.parquet").num_rows == 0


def test_a_list_like_another_is_where_the_other_is() -> None:
    assert isinstance(spool.like(Spool()), Spool)
    assert spool.like([]) == []
