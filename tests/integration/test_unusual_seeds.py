"""Seed rows whose fields are hard to write: nothing is asked in vain."""

from __future__ import annotations

import datetime
import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.scripted_server import ScriptedServer

import easydistill
from easydistill.data.reading import read_samples
from easydistill.errors import DataError


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    server.say = lambda text, number: f"answer to {text}"
    yield server
    server.close()


def labelled(server: ScriptedServer, folder: Path, seeds: str) -> Path:
    """Label the seeds; returns the stage's directory."""
    config: dict[str, Any] = {
        "job_type": "label",
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": seeds, "max_rejected_share": 1.0},
        "inference": {"base_url": server.url, "model": "m"},
    }
    easydistill.run(config)
    return next((folder / "run").glob("stages/*label"))


def deep(levels: int) -> Any:
    return {"a": deep(levels - 1)} if levels else 1


def test_fields_of_every_kind_are_written_and_what_cannot_be_is_not_asked(
    server: ScriptedServer, tmp_path: Path
) -> None:
    rows = [
        {"instruction": "one", "metadata": {}, "n": 2**90, "share": math.nan, "mixed": 1},
        {"instruction": "two", "metadata": {}, "n": 1, "share": math.inf, "mixed": ["x"], "half": "\ud800"},
        {"instruction": "three", "metadata": {}, "note": deep(300)},
    ]
    with gzip.open(tmp_path / "seeds.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    stage = labelled(server, tmp_path, str(tmp_path / "seeds.jsonl.gz"))
    assert sorted(server.asked) == ["one", "two"]
    assert "NaN" not in (stage / "labeled.json").read_text() and "Infinity" not in (stage / "labeled.json").read_text()
    for name in ("labeled.json", "labeled.parquet"):
        samples, _ = read_samples(stage / name, labelled=True)
        assert [sample.answer for sample in samples] == ["answer to one", "answer to two"]
        assert [sample.meta["metadata"] for sample in samples] == [{}, {}]
    (rejected,) = map(json.loads, (stage / "rejected.jsonl").read_text().splitlines())
    assert rejected["reason"] == "unwritable_row" and "'note'" in rejected["detail"]


def test_a_table_with_times_is_labelled(server: ScriptedServer, tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC)
    (tmp_path / "seeds").mkdir()
    for name, question in (("b", "two"), ("a", "one")):
        table = pa.Table.from_pylist([{"instruction": question, "at": moment, "raw": b"\xff"}])
        pq.write_table(table, tmp_path / "seeds" / f"{name}.parquet")
    stage = labelled(server, tmp_path, str(tmp_path / "seeds"))
    rows = json.loads((stage / "labeled.json").read_text())
    assert [(row["output"], row["at"], row["raw"]) for row in rows] == [
        ("answer to one", "2024-05-01T12:00:00+00:00", "/w=="),
        ("answer to two", "2024-05-01T12:00:00+00:00", "/w=="),
    ]


def test_where_no_row_can_be_written_nothing_is_asked(server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "seeds.json").write_text(json.dumps([{"instruction": "one", "note": deep(300)}]))
    with pytest.raises(DataError, match="none of 1 rows can be written"):
        labelled(server, tmp_path, str(tmp_path / "seeds.json"))
    assert server.asked == []


def test_a_folder_that_changes_is_labelled_again_without_asking_twice(server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "a.csv").write_text("instruction\none\n")
    labelled(server, tmp_path, str(tmp_path / "seeds"))
    stage = labelled(server, tmp_path, str(tmp_path / "seeds"))
    assert server.asked == ["one"]
    (tmp_path / "seeds" / "b.csv").write_text("instruction\ntwo\n")
    labelled(server, tmp_path, str(tmp_path / "seeds"))
    assert server.asked == ["one", "two"]
    assert len(json.loads((stage / "labeled.json").read_text())) == 2
