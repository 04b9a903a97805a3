"""Data sets of a hub, without one: what `datasets` has cached, and repositories of files that lie in a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from easydistill.data.reading import read_samples
from easydistill.data.row_files import hub, rows_of
from easydistill.data.row_files.hub_place import HubPlace
from easydistill.data.row_files.identity import hash_rows
from easydistill.data.row_files.places import place_of
from easydistill.engine.checks import unreadable_rows
from easydistill.errors import DataError, MissingExtra

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DAYS = [{"instruction": f"When? {n}", "output": "2024-05-01", "code": "007"} for n in range(4)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and no network."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    hub._resolved.cache_clear()
    yield folder
    hub._resolved.cache_clear()


def cached(folder: Path, name: str, files: dict[str, Any], config: str = "default") -> None:
    """Put rows into the cache, as `load_dataset(name)` leaves them there."""
    made = datasets.load_dataset_builder("parquet", data_files=files, cache_dir=str(folder / "made"))
    made.download_and_prepare()
    owner, _, own = name.rpartition("/")
    target = folder / f"{owner}___{own}" / config / "0.0.0" / COMMIT
    target.parent.mkdir(parents=True)
    shutil.copytree(made.cache_dir, target)
    # Prepared files are named after the data set.
    for file in target.glob("*.arrow"):
        file.rename(target / file.name.replace("parquet-", f"{own}-"))
    info = json.loads((target / "dataset_info.json").read_text())
    (target / "dataset_info.json").write_text(json.dumps({**info, "config_name": config, "dataset_name": own}))


def chats(path: Path, count: int) -> Path:
    table = pa.table(
        {
            "id": pa.array([f"{path.stem}{n}" for n in range(count)]),
            "messages": pa.array(
                [
                    [
                        json.dumps(each)
                        for each in ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})
                    ]
                    for _ in range(count)
                ]
            ).cast(pa.list_(pa.json_())),
        }
    )
    pq.write_table(table, path)
    return path


def test_what_datasets_has_cached_is_read_without_a_network(tmp_path: Path, cache: Path) -> None:
    files = {name: str(chats(tmp_path / f"{name}.parquet", 3)) for name in ("train", "test")}
    cached(cache, "someone/legs", files)
    samples, rejected = read_samples("hf://someone/legs", labelled=True)
    assert [sample.id for sample in samples] == ["train0", "train1", "train2"] and not rejected
    assert samples[0].messages[1] == {"role": "assistant", "content": "a"}
    for where in ("hf://datasets/someone/legs?split=test", f"hf://someone/legs@{COMMIT}?split=test"):
        assert [row["id"] for row in rows_of(where)] == ["test0", "test1", "test2"]
    # A path has lost a slash.
    assert next(iter(rows_of(Path("hf://someone/legs?split=test"))))["id"] == "test0"
    assert hash_rows("hf://someone/legs") == hash_rows(f"hf://someone/legs@{COMMIT}?split=train")
    assert hash_rows("hf://someone/legs") != hash_rows("hf://someone/legs?split=test")


@pytest.mark.parametrize(
    ("where", "problem"),
    [
        ("hf://someone/legs?split=dev", "no split 'dev'"),
        ("hf://someone/legs?config=french", "french"),
        ("hf://someone/legs?revision=v1", f"not known to be revision v1\n    → .*@{COMMIT}"),
        ("hf://someone/arms", "the hub cannot be reached"),
    ],
)
def test_what_the_cache_does_not_hold_is_told(where: str, problem: str, tmp_path: Path, cache: Path) -> None:
    cached(cache, "someone/legs", {"train": str(chats(tmp_path / "train.parquet", 1))})
    for ask in (hash_rows, lambda where: list(rows_of(where))):
        with pytest.raises(DataError, match=problem):
            ask(where)


def test_of_several_splits_one_is_named(tmp_path: Path, cache: Path) -> None:
    files = {name: str(chats(tmp_path / f"{name}.parquet", 1)) for name in ("first", "second")}
    cached(cache, "someone/legs", files)
    with pytest.raises(DataError, match=r"several splits: first, second\n    → name one: .*\?split=first"):
        list(rows_of("hf://someone/legs"))
    assert [row["id"] for row in rows_of("hf://someone/legs?split=second")] == ["second0"]


def repository(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[Any]:
    """Let the hub's data sets lie in a folder; returns what is asked for."""
    build = datasets.load_dataset_builder
    asked: list[Any] = []

    def local(path: str, **wanted: Any) -> Any:
        asked.append((path, wanted))
        return build(str(folder), data_files=wanted["data_files"], name=wanted["name"])

    monkeypatch.setattr(datasets, "load_dataset_builder", local)
    return asked


def test_texts_of_json_and_csv_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "days"
    folder.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in DAYS)
    (folder / "train.jsonl").write_text(lines)
    asked = repository(monkeypatch, folder)
    # What this guards against: the library's own reader rewrites such answers.
    theirs = datasets.load_dataset("json", data_files=str(folder / "train.jsonl"), split="train")
    assert theirs[0]["output"] != "2024-05-01"
    assert list(rows_of("hf://someone/days@abc")) == DAYS
    (path, wanted), *_ = asked
    assert path == "hf://datasets/someone/days" and wanted["revision"] == "abc"
    (folder / "train.jsonl").unlink()
    (folder / "train.csv").write_text(
        "instruction,output,code\n" + "".join(",".join(row.values()) + "\n" for row in DAYS)
    )
    hub._resolved.cache_clear()
    assert list(rows_of("hf://someone/days")) == DAYS


def test_other_formats_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "legs"
    folder.mkdir()
    chats(folder / "train-00000-of-00002.parquet", 3)
    chats(folder / "train-00001-of-00002.parquet", 3)
    chats(folder / "extra.parquet", 1)
    asked = repository(monkeypatch, folder)
    assert len(list(rows_of("hf://someone/legs?data_files=train-*"))) == 6
    assert asked[0][1]["data_files"] == ["train-*"]
    (row,) = rows_of("hf://someone/legs/extra.parquet")
    assert row["messages"][0] == {"role": "user", "content": "q"}
    # Nothing was prepared.
    assert not list((tmp_path / "cache").rglob("*.arrow"))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("hf://a/b", HubPlace("a/b")),
        ("hf:/a/b", HubPlace("a/b")),
        ("hf://datasets/a/b/", HubPlace("a/b")),
        ("hf://datasets/squad", HubPlace("squad")),
        ("hf://a/b@v2", HubPlace("a/b", revision="v2")),
        ("hf://a/b@main", HubPlace("a/b")),
        ("hf://a/b@v2/data/x.parquet", HubPlace("a/b", revision="v2", data_files=("data/x.parquet",))),
        ("hf://a/b/data/*.parquet", HubPlace("a/b", data_files=("data/*.parquet",))),
        ("hf://a/b/data", HubPlace("a/b", data_files=("data/**",))),
        ("hf://a/b?split=test&config=en&revision=refs%2Fpr%2F1", HubPlace("a/b", "test", "refs/pr/1", "en")),
        (
            "hf://a/b?data_files=x.json,y.json&data_files=z.json",
            HubPlace("a/b", data_files=("x.json", "y.json", "z.json")),
        ),
    ],
)
def test_ids(name: str, place: HubPlace) -> None:
    assert place_of(name) == place


def test_without_the_library_validate_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unreadable_rows("dataset.instruction_path", "hf://a/b") == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (issue,) = unreadable_rows("dataset.instruction_path", "hf://a/b")
    assert "datasets" in issue.problem and "easydistill-toolkit[hub]" in issue.hint
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    monkeypatch.setitem(__import__("sys").modules, "datasets.exceptions", None)
    with pytest.raises(MissingExtra, match="hub"):
        list(rows_of("hf://a/b"))


# --- what `save_to_disk` writes -------------------------------------------------------------------------------


def test_saved_data_sets(tmp_path: Path) -> None:
    rows = [{"id": f"r{n}", "messages": [{"role": "user", "content": str(n)}]} for n in range(7)]
    saved = datasets.Dataset.from_list(rows)
    saved.select(range(6, -1, -1)).save_to_disk(tmp_path / "one", num_shards=3)
    assert list(rows_of(tmp_path / "one")) == rows[::-1]
    split = datasets.DatasetDict({"train": saved, "test": saved.select([0])})
    split.save_to_disk(tmp_path / "several")
    assert list(rows_of(tmp_path / "several")) == list(rows_of(tmp_path / "several" / "train")) == rows
    assert list(rows_of(tmp_path / "several" / "test")) == rows[:1]
    datasets.DatasetDict({"dev": saved, "test": saved}).save_to_disk(tmp_path / "neither")
    for name in ("one", "several", "several/test"):
        assert unreadable_rows("k", str(tmp_path / name)) == []
    (issue,) = unreadable_rows("k", str(tmp_path / "neither"))
    assert "dev, test" in issue.problem and issue.hint.endswith("neither/dev")
    assert hash_rows(tmp_path / "several") == hash_rows(tmp_path / "several" / "train")
    next((tmp_path / "one").glob("*.arrow")).unlink()
    (issue,) = unreadable_rows("k", str(tmp_path / "one"))
    assert "missing" in issue.problem
