"""The job `release`: folders that `datasets` loads, whole and the same each time, with what the card says of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import yaml
from tests.support.fake_hub import FakeHub
from tests.support.pictures import BLUE, RED, picture

import easydistill
from easydistill.data.images import ImageReader, ImageStore
from easydistill.data.reading import read_samples
from easydistill.errors import ConfigError, DataError
from easydistill.releasing.push import PushFailed

TOOL = {"type": "function", "function": {"name": "count_legs", "parameters": {"type": "object", "properties": {}}}}


def call(number: int) -> dict[str, Any]:
    asked = {"type": "function", "function": {"name": "count_legs", "arguments": {"n": number, "why": {"deep": [1]}}}}
    messages = [
        {"role": "user", "content": f"Legs of {number} spiders?"},
        {"role": "assistant", "content": "", "tool_calls": [asked]},
        {"role": "tool", "content": str(8 * number)},
        {"role": "assistant", "content": f"{8 * number}."},
    ]
    return {"id": f"call-{number}", "messages": messages, "tools": [TOOL]}


def plain(number: int, **fields: Any) -> dict[str, Any]:
    return {"id": f"r{number}", "instruction": f"Say {number}.", "output": f"It is {number}. " * 20, **fields}


def job(folder: Path, rows: list[dict[str, Any]], **release: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "job_type": "release",
        "output_dir": str(folder / "run"),
        "dataset": {"labeled_path": str(path)},
        "release": release,
    }


def released(folder: Path, rows: list[dict[str, Any]], **release: Any) -> Path:
    easydistill.run(job(folder, rows, **release), quiet=True)
    return folder / "run/dataset"


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """`datasets.load_dataset` with a cache of the test's own, which all its folders share."""
    import datasets

    def load(folder: Path) -> Any:
        return datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))

    return load


def header(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_shards_have_one_schema_and_load_as_they_were(tmp_path: Path, load: Any) -> None:
    """Columns that a shard lacks, numbers that are whole in one shard and not in another, calls in a few rows only."""
    rows = [plain(number) for number in range(120)]
    rows += [plain(number, score=number, label={"a": 1}) for number in range(120, 150)]
    rows += [plain(150, score=0.5, label={"b": "x"}), *(call(number) for number in range(20))]
    folder = released(tmp_path / "a", rows, shard_mb=0.001, splits={"test": 0.1, "validation": 7}, license="mit")
    shards = sorted(folder.glob("train/*.parquet"))
    assert len(shards) > 5
    assert shards[0].name == f"train-00000-of-{len(shards):05d}.parquet"
    assert len({str(parquet.read_schema(path)) for path in folder.rglob("*.parquet")}) == 1
    assert {parquet.ParquetFile(path).metadata.row_group(0).column(0).compression for path in shards} == {"ZSTD"}
    found = load(folder)
    assert {name: len(part) for name, part in found.items()} == {"train": 147, "test": 17, "validation": 7}
    back = {row["id"]: row for part in found.values() for row in part}
    assert back["call-3"]["messages"] == call(3)["messages"], "no key was added to calls"
    assert back["call-3"]["tools"] == [TOOL]
    assert back["r150"]["score"] == 0.5 and back["r130"]["score"] == 130 and back["r0"]["score"] is None
    done = subprocess.run(["sha256sum", "--check", "--quiet", "checksums.sha256"], cwd=folder, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert len((folder / "checksums.sha256").read_text().splitlines()) == len(files(folder)) - 1
    assert header(folder)["license"] == "mit" and header(folder)["size_categories"] == ["n<1K"]


def test_a_number_that_no_float_is_equal_to_is_kept(tmp_path: Path, load: Any) -> None:
    rows = [plain(number, big=0.5) for number in range(40)] + [plain(99, big=2**60 + 1)]
    folder = released(tmp_path / "a", rows, shard_mb=0.001)
    found = {row["id"]: row["big"] for row in load(folder)["train"]}
    assert found["r99"] == 2**60 + 1 and found["r0"] == 0.5


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [*(plain(number, rv=number % 10) for number in range(60)), call(1)]
    first = files(released(tmp_path / "a", rows, shard_mb=0.002, splits={"test": 0.2}))
    assert files(released(tmp_path / "b", rows, shard_mb=0.002, splits={"test": 0.2})) == first
    other = files(released(tmp_path / "c", rows, shard_mb=0.002, splits={"test": 0.2}, seed=7))
    assert other["checksums.sha256"] != first["checksums.sha256"]


def test_folders_of_one_name_are_not_taken_for_each_other(tmp_path: Path, load: Any) -> None:
    """`datasets` keys its cache by the folder's name and the card; both are called `dataset`."""
    assert load(released(tmp_path / "a", [plain(1)]))["train"]["id"] == ["r1"]
    assert load(released(tmp_path / "b", [plain(2)]))["train"]["id"] == ["r2"]
    again = {**job(tmp_path / "a", [plain(3)]), "output_dir": str(tmp_path / "a/run")}
    easydistill.run(again, quiet=True)
    assert load(tmp_path / "a/run/dataset")["train"]["id"] == ["r3"]


def test_our_jobs_read_the_folder_and_its_splits(tmp_path: Path) -> None:
    folder = released(tmp_path / "a", [plain(number) for number in range(20)] + [call(1)], splits={"test": 5})
    train, _ = read_samples(folder, labelled=True)
    test, _ = read_samples(folder / "test", labelled=True)
    assert len(train) == 16 and len(test) == 5
    assert {row.id for row in train}.isdisjoint(row.id for row in test)


def test_images_are_refused_or_written_as_bytes(tmp_path: Path, load: Any) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for name, colour in (("red", RED), ("blue", BLUE)):
        (folder / f"{name}.png").write_bytes(picture(colour))
    rows = [plain(1)] + [
        {"id": name, "image": f"{name}.png", "instruction": "<image>Which colour?", "output": name}
        for name in ("red", "blue")
    ]
    config = job(folder, rows)
    assert any('"images": "bytes"' in note for stage in easydistill.plan(config) for note in stage.notes)
    assert easydistill.run(config, quiet=True).exit_code == 3, "two of three rows are refused"
    target = released(folder, rows, images="bytes", shard_mb=0.0001)
    found = {row["id"]: row for row in load(target)["train"]}
    assert found["red"]["images"][0].convert("RGB").getpixel((0, 0)) == RED
    assert found["red"]["messages"][0]["content"] == "<image>Which colour?"
    assert not found["r1"]["images"]
    samples, refused = read_samples(target, labelled=True, images=ImageReader(ImageStore()))
    assert not refused and sum(len(sample.images) for sample in samples) == 2
    stored = next(
        row for path in target.rglob("*.parquet") for row in parquet.read_table(path).to_pylist() if row["images"]
    )
    assert stored["images"][0]["bytes"][:4] == picture(RED)[:4]


def test_the_papers_format_and_what_it_cannot_hold(tmp_path: Path, load: Any) -> None:
    rows = [plain(number, task="Math") for number in range(30)] + [call(1)]
    folder = released(tmp_path / "a", rows, schema="instruction")
    found = load(folder)["train"]
    assert found.column_names == ["id", "instruction", "input", "output", "task"] and len(found) == 30
    rejected = json.loads((tmp_path / "a/run/stages/1-release/rejected.jsonl").read_text())
    assert rejected["reason"] == "not_in_schema" and '"schema": "chat"' in rejected["detail"]
    with pytest.raises(DataError, match="no row can be released"):
        easydistill.run(job(tmp_path / "b", [call(1)], schema="instruction"), quiet=True)


# --- OmniThought -----------------------------------------------------------------------------------------------------


def problem(number: int) -> dict[str, Any]:
    """A row of the published schema, with chains of two teachers."""

    def chain(model: str, verbosity: int) -> dict[str, Any]:
        return {
            "Cognitive_Difficulty": {"judge": "J", "level": number % 10},
            "Reasoning_Verbosity": {"judge": "J", "level": verbosity},
            "full_response": f"<think>\nEight times {number}.\n</think>\n\n{8 * number} legs, says {model}.",
            "model": model,
        }

    reasoning = [chain("R1", 4), chain("QwQ", 7)] if number % 3 else [chain("R1", 5)]
    return {"id": f"p{number}", "source": "zoo", "question": f"Legs of {number} spiders?", "reasoning": reasoning}


def test_omnithought_is_read_and_written_as_published(tmp_path: Path, load: Any) -> None:
    rows = [problem(number) for number in range(40)]
    folder = released(tmp_path / "a", rows, schema="omnithought", shard_mb=0.002, splits={"test": 4})
    found = load(folder)
    back = {row["id"]: row for part in found.values() for row in part}
    for row in rows:
        assert {name: value for name, value in back[row["id"]].items() if value is not None} == row
    text = (folder / "README.md").read_text()
    assert "66 answers to 40 problems" in text and "Teachers: R1, QwQ." in text
    assert "| 4 | 26 | █" in text, "how often a chain has RV 4"
    again = released(tmp_path / "b", [dict(row) for part in found.values() for row in part], schema="omnithought")
    assert {row["id"]: row for row in load(again)["train"]} == back


def test_new_scores_replace_published_ones_and_name_their_judge(tmp_path: Path, load: Any) -> None:
    rows = [
        {
            "id": "a",
            "instruction": "Legs?",
            "output": "8",
            "reasoning_content": "Eight.",
            "rv": 3,
            "cd": 2,
            "correct": 1,
        }
        | {"Reasoning_Verbosity": {"judge": "old", "level": 9}, "Cognitive_Difficulty": {"judge": "old", "level": 2}}
    ]
    folder = released(tmp_path / "a", rows, schema="omnithought", judge="new")
    (row,) = load(folder)["train"]
    (chain,) = row["reasoning"]
    assert chain["full_response"] == "<think>\nEight.\n</think>\n\n8" and chain["correct"] == 1
    assert chain["Reasoning_Verbosity"] == {"judge": "new", "level": 3}
    assert chain["Cognitive_Difficulty"] == {"judge": "old", "level": 2}


def rated(number: int, **fields: Any) -> dict[str, Any]:
    return {**plain(number), "Reasoning_Verbosity": {"judge": "j", "level": 3}, **fields}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"rv": "7"}, "its rv is '7', which is no number"),
        ({"rv": True}, "its rv is True, which is no number"),
        ({"rv": 3, "Reasoning_Verbosity": {"judge": 5, "level": 3}}, "not a judge's name and a level"),
        ({"rv": 3, "Reasoning_Verbosity": {"level": 3, "why": "long"}}, "not a judge's name and a level"),
        ({"Cognitive_Difficulty": "hard"}, "its Cognitive_Difficulty is hard, and not a judge's name and a level"),
        ({"Cognitive_Difficulty": {"level": "hard"}}, "its cd is 'hard', which is no number"),
        ({"model": 4}, "its model is 4, which is no text"),
        ({"reasoning_content": "So.</think> Or not."}, "its thoughts hold the mark </think>"),
    ],
)
def test_chains_that_omnithought_cannot_hold_are_rejected_by_name(
    tmp_path: Path, fields: dict[str, Any], told: str
) -> None:
    """One that is in a later shard than the first, whose types cannot hold it: without the check it was written over
    and over."""
    rows = [rated(number) for number in range(30)] + [rated(30, **fields)]
    folder = released(tmp_path / "a", rows, schema="omnithought", shard_mb=0.001)
    (rejected,) = next((tmp_path / "a/run").rglob("rejected.jsonl")).read_text().splitlines()
    assert told in rejected and "not_in_schema" in rejected
    samples, _ = read_samples(folder, labelled=True)
    assert [sample.meta["rv"] for sample in samples] == [3] * 30, "the score that they were published with"


@pytest.mark.parametrize(
    ("named", "title"),
    [({"push": "org/legs-1"}, "legs-1"), ({}, "run"), ({"push": "org/legs-1", "name": "Legs"}, "Legs")],
)
def test_the_title_is_the_name_or_the_repositorys_or_the_runs(
    tmp_path: Path, named: dict[str, Any], title: str
) -> None:
    from easydistill.jobs.release import Job

    assert Job.model_validate(job(tmp_path / "a", [plain(1)], **named)).title == title


def test_a_mix_that_looked_for_no_benchmark_does_not_pass_for_a_clean_one(tmp_path: Path) -> None:
    path = job(tmp_path / "a", [plain(1), plain(2)])["dataset"]["labeled_path"]
    jobs = {
        "mix": {"job_type": "mix", "mix": {"inputs": {"a": {"path": path}}}},
        "release": {"job_type": "release", "dataset": {"labeled_path": "@mix/labeled"}},
    }
    easydistill.run({"job_type": "pipeline", "output_dir": str(tmp_path / "run"), "jobs": jobs}, quiet=True)
    text = (tmp_path / "run/stages/2-release/dataset/README.md").read_text()
    assert "| mix |" in text and "Nobody looked for problems of benchmarks in it." in text


def test_chains_get_their_own_ids_again_whatever_their_order(tmp_path: Path) -> None:
    rows = [{"id": f"p-{number}", "instruction": "Legs?", "output": f"It is {number}."} for number in (10, 2, 3, 1)]
    rows[0]["id"] = "p-4"
    folder = released(tmp_path / "a", rows, schema="omnithought")
    back = {sample.id: sample.messages[-1]["content"] for sample in read_samples(folder, labelled=True)[0]}
    assert back == {row["id"]: row["output"] for row in rows}


# --- the card --------------------------------------------------------------------------------------------------------


def test_the_card_tells_what_the_manifests_and_the_rows_say(tmp_path: Path, tiny_model: Path) -> None:
    seeds = [plain(number, task="Math" if number % 2 else "Art") for number in range(12)] + [plain(1, task="Math")]
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in seeds))
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": "Say 7."}) + "\n")
    benchmarks = {"benchmarks": [str(tmp_path / "bench.jsonl")]}
    jobs = {
        "mixed": {
            "job_type": "mix",
            "mix": {"inputs": {"seeds": {"path": str(tmp_path / "seeds.jsonl"), "license": "cc0-1.0"}}},
        },
        "clean": {
            "job_type": "decontaminate",
            "dataset": {"instruction_path": "@mixed/labeled"},
            "synthesis": benchmarks,
        },
        "dedup": {
            "job_type": "deduplicate",
            "dataset": {"instruction_path": "@clean/labeled"},
            "synthesis": {"too_similar": 1},
        },
        "release": {
            "job_type": "release",
            "dataset": {"labeled_path": "@dedup/labeled"},
            "release": {
                "tokenizer": str(tiny_model),
                "contamination": benchmarks,
                "name": "Numbers",
                "teachers": ["T"],
            },
        },
    }
    found = easydistill.run({"job_type": "pipeline", "output_dir": str(tmp_path / "run"), "jobs": jobs}, quiet=True)
    assert found.exit_code == 0
    text = (tmp_path / "run/stages/4-release/dataset/README.md").read_text()
    steps = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith(("| mix", "| de"))]
    assert steps == ["mix", "decontaminate", "deduplicate"]
    assert "Decontaminated against 1 problems: 1 (benchmark_exact 1) rows were dropped." in text
    assert "Mixed: 1 rows were there more than once" in text and "Deduplicated: 0 of 11" in text
    assert "| seeds | cc0-1.0 |" in text and "Teachers: T." in text
    assert "Measured against bench.jsonl (1 problems): 0 rows" in text
    assert "| Math | 5 |" in text and "answer, tokens" in text
    assert str(tmp_path) not in text


# --- pushing ---------------------------------------------------------------------------------------------------------


TOKEN = "hf_secret_of_the_test"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that this process is online with."""
    from huggingface_hub import constants

    hub = FakeHub(TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield hub
    hub.close()


def test_nothing_is_uploaded_unless_it_is_asked_for(tmp_path: Path, hub: FakeHub) -> None:
    released(tmp_path / "a", [plain(number) for number in range(6)], shard_mb=0.0005)
    assert not hub.asked


def test_what_is_uploaded_is_the_folder(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    config = job(tmp_path / "a", [plain(number) for number in range(6)], shard_mb=0.0005, push="o/n")
    assert any("uploaded to o/n (private" in note for stage in easydistill.plan(config) for note in stage.notes)
    assert not hub.asked
    easydistill.run(config, quiet=True)
    assert hub.files == files(tmp_path / "a/run/dataset") and len(hub.files) >= 4
    assert hub.created == [{"name": "n", "organization": "o", "type": "dataset", "visibility": "private"}]
    easydistill.run(config, quiet=True)
    assert hub.commits == 1, "a finished upload is not repeated"
    assert all(TOKEN.encode() not in path.read_bytes() for path in (tmp_path / "a/run").rglob("*") if path.is_file())
    # A smaller release leaves no shard of a larger one behind.
    easydistill.run(job(tmp_path / "a", [plain(1)], push="o/n"), quiet=True)
    assert hub.files == files(tmp_path / "a/run/dataset") and hub.commits == 2


def test_a_hub_that_refuses_is_told_and_asked_again(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = job(tmp_path / "a", [plain(1)], push="o/n")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="HF_TOKEN is not set"):
        easydistill.run(config, quiet=True)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_token_12345")
    with pytest.raises(PushFailed, match=r"o/n: .*401") as failure:
        easydistill.run(config, quiet=True)
    assert "hf_wrong_token_12345" not in str(failure.value) + (tmp_path / "a/run/log.txt").read_text()
    assert not hub.files and files(tmp_path / "a/run/dataset")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert easydistill.run(config, quiet=True).summary["stages"]["release"]["status"] == "skipped"
    assert hub.commits == 1
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        easydistill.run(job(tmp_path / "b", [plain(1)], push="o/n"), quiet=True)


@pytest.mark.parametrize(
    ("release", "told"),
    [
        ({"splits": {"test": 0.6, "validation": 0.4}}, "leave nothing for train"),
        ({"judge": "J"}, "judge is not written"),
        ({"schema": "omnithought", "images": "bytes"}, "holds no images"),
        ({"push": "nobody"}, 'release.push: "nobody" does not have the form'),
        ({"splits": {"dev": 3}}, 'release.splits.dev: "dev" is not one of'),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, release: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        easydistill.validate(job(tmp_path / "a", [plain(1)], **release))


def test_splits_that_would_be_empty_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the split test has no rows"):
        easydistill.run(job(tmp_path / "a", [plain(1)], splits={"test": 5}), quiet=True)
