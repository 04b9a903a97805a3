"""Whatever job reads rows: `validate` tells a path that cannot be read, and takes one that can."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from easydistill import api
from easydistill.cli import main
from easydistill.errors import ConfigError

API = {"base_url": "http://localhost:9/v1", "model": "m"}
STUDENT = {"models": {"student": "."}}
JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "label": ("dataset.instruction_path", {"inference": API}),
    "black_box_kd_api": ("dataset.labeled_path", STUDENT),
    "dpo": ("dataset.labeled_path", STUDENT),
    "reward_model": ("dataset.labeled_path", STUDENT),
    "grpo": ("dataset.instruction_path", STUDENT | {"rewards": {"verify": {}}}),
    "on_policy_kd": ("dataset.instruction_path", {"models": {"student": ".", "teacher": "."}}),
    "white_box_kd_local": ("dataset.labeled_path", {"models": {"student": ".", "teacher": "."}}),
    "deduplicate": ("dataset.instruction_path", {}),
    "decontaminate": ("synthesis.benchmarks.0", {"dataset": {"instruction_path": "good/*.jsonl.gz"}}),
    "instruction_refinement": ("dataset.instruction_path", {"inference": API}),
}


def problems(job: str, where: str, check: Callable[[Any], Any] = api.plan) -> list[str]:
    """Problems of the key that names the rows."""
    key, fields = JOBS[job]
    config = json.loads(json.dumps({"job_type": job, "output_dir": "run", **fields}))
    section, name, *number = key.split(".")
    config.setdefault(section, {})[name] = [where] if number else where
    try:
        check(config)
    except ConfigError as error:
        return [issue.problem for issue in error.issues if issue.path == key]
    return []


@pytest.mark.parametrize("job", [job for job in JOBS if job != "decontaminate"])
def test_validate_tells_what_names_and_first_bytes_tell(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.v2").mkdir()
    (tmp_path / "rows.v2" / "a.csv").write_text("instruction\nx\n")
    (tmp_path / "page.json").write_text("<html>")
    (tmp_path / "mixed").mkdir()
    for name in ("a.csv", "a.json"):
        (tmp_path / "mixed" / name).write_text("[]")
    # What is not there may be there where the config runs.
    for where in ("nowhere.jsonl.gz", "nowhere/*.csv", "folder", "folder.v3", "rows.v2", "hf://owner/name"):
        assert problems(job, where, api.validate) == []
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"instruction": "x"}\n' * 99)[:-9])
    (tmp_path / "page.csv").write_text("<!doctype html>")
    for where, problem in {
        "nowhere.xlsx": "not that of a supported format",
        "nowhere.parquet.gz": "not that of a supported format",
        "page.json": "it is a web page",
        "mixed": "several formats",
        "empty": "no file of rows in this folder",
        "cut.jsonl.gz": "cut off or damaged",
        "*.csv": "page.csv is a web page",
        "hf://owner/name?shard=1": "shard=1 is not understood",
    }.items():
        (found,) = problems(job, where, api.validate)
        assert problem in found


def test_validate_looks_into_pipelines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clean = {"job_type": "deduplicate", "dataset": {"instruction_path": "rows.docx"}}
    more = {"job_type": "deduplicate", "dataset": {"instruction_path": "@clean/labeled"}}
    config = {"job_type": "pipeline", "output_dir": "run", "jobs": {"clean": clean, "more": more}}
    with pytest.raises(ConfigError) as caught:
        api.validate(config)
    assert [issue.path for issue in caught.value.issues] == ["jobs.clean.dataset.instruction_path"]


def absent(job: str, where: str) -> list[tuple[str, str]]:
    """(key, problem and hint) of what `validate` says is not on this machine."""
    found: list[tuple[str, str]] = []

    def look(config: Any) -> None:
        issues = api.absent_paths(api.load(config).job)
        found.extend((issue.path, f"{issue.problem} → {issue.hint}") for issue in issues)

    problems(job, where, look)
    return found


@pytest.mark.parametrize("job", JOBS)
def test_validate_says_what_is_not_on_this_machine(job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "a.jsonl.gz").write_bytes(gzip.compress(b'{"instruction": "x"}\n'))
    for where in ("good", "good/*.gz", "good/a.jsonl.gz", "hf://owner/name"):
        assert absent(job, where) == []
    for where, problem in {"nowhere.jsonl": "no such file", "nowhere/*.jsonl": "no file matches it"}.items():
        ((key, told),) = absent(job, where)
        assert key == JOBS[job][0] and problem in told and "working directory" in told


def test_validate_says_which_templates_and_models_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"instruction": "x", "output": "y"}')
    train = {
        "job_type": "black_box_kd_local",
        "dataset": {"labeled_path": "rows.jsonl", "template": "gone.jinja"},
        "models": {"student": "./gone"},
    }
    more = {
        "job_type": "black_box_kd_local",
        "dataset": {"labeled_path": "@train/labeled"},
        "models": {"student": "@train/student"},
    }
    told = api.absent_paths(api.load(train).job)
    assert [issue.path for issue in told] == ["dataset.template", "models.student"]
    config = {"job_type": "pipeline", "output_dir": "run", "jobs": {"train": train, "more": more}}
    assert [issue.path for issue in api.absent_paths(api.load(config).job)] == [
        "jobs.train.dataset.template",
        "jobs.train.models.student",
    ]
    (tmp_path / "config.json").write_text(json.dumps(train))
    assert main(["validate", "--elsewhere", "config.json"]) == 0
    valid, *rest = capsys.readouterr().out.splitlines()
    assert "valid" in valid and "not on this machine: dataset.template" in rest[0] and "→" in rest[1]
    assert main(["validate", "config.json"]) == 2, "a run on this machine would fail"
    told, err = capsys.readouterr()
    assert "valid" in told and "--elsewhere" in told
    assert err.startswith("error: ") and "dataset.template" in err and "models.student" in err and "→" in err


def test_validate_says_what_it_has_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = {"job_type": "deduplicate", "dataset": {"instruction_path": "hf://owner/name"}}
    (tmp_path / "config.json").write_text(json.dumps(rows))
    assert main(["validate", "config.json"]) == 0
    assert "not checked: dataset.instruction_path: hf://owner/name" in capsys.readouterr().out


def test_texts_are_no_rows(tmp_path: Path) -> None:
    api.validate(
        {
            "job_type": "instruction_response_extraction",
            "dataset": {"instruction_path": "book.pdf"},
            "inference": API,
        }
    )


@pytest.mark.parametrize("job", JOBS)
def test_every_job_checks_its_rows(job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "good" / "a.jsonl.gz").write_bytes(gzip.compress(b'{"instruction": "x"}\n'))
    (tmp_path / "sheet.xlsx").write_bytes(b"PK")
    (tmp_path / "page.json").write_text("<html>")
    for where in ("good", "good/*.gz", "good/a.jsonl.gz"):
        assert problems(job, where) == []
    for where, problem in {
        "nowhere.jsonl": "no such file",
        "nowhere/*.jsonl": "no file matches it",
        "empty": "no file of rows in this folder",
        "sheet.xlsx": "not that of a supported format",
        "page.json": "it is a web page",
        "hf://owner": "not the name of a hub",
    }.items():
        (found,) = problems(job, where)
        assert problem in found
