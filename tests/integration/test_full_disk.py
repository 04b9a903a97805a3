"""Jobs on disks that are full, read-only or limited: the right message, nothing torn, nothing paid for twice."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.fault_server import Running, running
from tests.support.jobs import TRAINING, api_job, run_here, write_config
from tests.support.small_disk import limited, small_disk

from easydistill.data.unwritten import forget_unwritten

QUESTIONS = [f"question {number}, in a few words" for number in range(60)]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(latency=0.02) as found:
        yield found


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("EASYDISTILL_CACHE", str(tmp_path / "cache"))
    yield
    forget_unwritten()


def label_job(folder: Path, server: Running, marker: str) -> dict[str, Any]:
    job = api_job(folder, server.base_url, folder, [f"{marker} {text}" for text in QUESTIONS], max_concurrency=8)
    del job["models"], job["training"], job["evaluation"]
    return {**job, "job_type": "label"}


def paid(server: Running, marker: str) -> dict[str, int]:
    return {text: count for text, count in server.stats()["paid"].items() if text.startswith(f"{marker} ")}


def whole_lines(journal: Path) -> list[bytes]:
    data = journal.read_bytes()
    assert data.endswith(b"\n"), "half a line was left behind"
    return data.splitlines()


def spilt(folder: Path) -> list[Path]:
    return list((folder / "cache" / "unwritten").glob("*.jsonl"))


def test_answers_that_a_full_disk_does_not_take_are_kept_and_not_paid_again(server: Running, tmp_path: Path) -> None:
    config = write_config(tmp_path, label_job(tmp_path, server, "tmpfs"))
    with small_disk(tmp_path / "run", "40k") as disk:
        code, told = run_here(config)
        assert code == 4
        assert "journal.jsonl: no space is left" in told and "are free at" in told
        assert "the same command takes them up" in told and "Traceback" not in told
        assert "log.txt" not in told
        received = sum(paid(server, "tmpfs").values())
        journal = tmp_path / "run/stages/1-label/journal.jsonl"
        (aside,) = spilt(tmp_path)
        assert str(aside) in told
        # Every answer is in one of the two, and those in flight at the fault were waited for.
        assert len(whole_lines(journal)) + len(whole_lines(aside)) == received
        disk.resize("20m")
        code, told = run_here(config)
        assert code == 0, told
        assert not spilt(tmp_path)
        assert set(paid(server, "tmpfs").values()) == {1}
        rows = json.loads((tmp_path / "run/stages/1-label/labeled.json").read_text())
        assert len(rows) == len(QUESTIONS)


def test_a_limit_on_the_size_of_files_is_told_and_the_run_goes_on_without_it(server: Running, tmp_path: Path) -> None:
    config = write_config(tmp_path, label_job(tmp_path, server, "limit"))
    with limited(resource.RLIMIT_FSIZE, 9_000):
        code, told = run_here(config)
    assert code == 4
    assert "journal.jsonl: a file may not be that large: ulimit -f allows 9.0 KB" in told
    received = sum(paid(server, "limit").values())
    assert 0 < received < len(QUESTIONS), "it stopped asking"
    code, told = run_here(config)
    assert code == 0, told
    assert set(paid(server, "limit").values()) == {1}


def test_a_disk_without_any_room_stops_the_run_before_anything_is_asked(server: Running, tmp_path: Path) -> None:
    config = write_config(tmp_path, label_job(tmp_path, server, "none"))
    with small_disk(tmp_path / "run", "4k") as disk:
        (disk.path / "filler").write_bytes(b"x" * 4096)
        code, told = run_here(config)
    assert code == 4 and told.startswith(f"error: output_dir: {tmp_path / 'run'}: no space is left\n")
    assert not paid(server, "none")


def test_a_student_that_cannot_fit_is_refused_before_its_labels_are_paid_for(
    server: Running, tiny_model: Path, tmp_path: Path
) -> None:
    job = api_job(tmp_path, server.base_url, tiny_model, [f"student {text}" for text in QUESTIONS])
    config = write_config(tmp_path, job)
    with small_disk(tmp_path / "run", "200k"):
        code, told = run_here(config)
    assert code == 4 and "error: this run: 561.5 KB are needed at" in told, told
    assert not paid(server, "student")


def test_a_checkpoint_that_does_not_fit_is_removed_and_training_goes_on_with_room(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = [{"instruction": text, "output": f"{text} it is."} for text in QUESTIONS[:20]]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    job = {
        "job_type": "black_box_kd_local",
        "output_dir": str(tmp_path / "run"),
        "dataset": {"labeled_path": str(tmp_path / "rows.json")},
        "models": {"student": str(tiny_model)},
        "training": {**TRAINING, "num_train_epochs": 1, "save_steps": 1},
        "evaluation": {"enabled": False},
    }
    config = write_config(tmp_path, job)
    with small_disk(tmp_path / "run", "2600k") as disk:
        code, told = run_here(config)
        assert code == 4 and "no space is left" in told, told
        assert re.search(r"note: this run may need [\d.]+ MB of disk, and 2\.\d MB are free at", told)
        assert re.search(r"in all this stage writes about [\d.]+ MB", told)
        assert not list(disk.path.glob("stages/*/checkpoints/*/checkpoint-*"))
        assert not list(disk.path.rglob("*.tmp"))
        disk.resize("60m")
        code, told = run_here(config)
        assert code == 0, told
        assert (disk.path / "student" / "model.safetensors").is_file()


def test_a_read_only_disk_is_named_with_its_setting(server: Running, tmp_path: Path) -> None:
    config = write_config(tmp_path, label_job(tmp_path, server, "read-only"))
    with small_disk(tmp_path / "disk", "1m") as disk:
        disk.resize("1m,ro")
        code, told = run_here(config, "--set", f"output_dir={tmp_path}/disk/deep/run")
    assert code == 4 and "output_dir: " in told and "the file system is read-only" in told


def test_a_file_where_a_folder_should_be_is_named(server: Running, tmp_path: Path) -> None:
    config = write_config(tmp_path, label_job(tmp_path, server, "file"))
    (tmp_path / "taken").write_text("a file")
    code, told = run_here(config, "--set", f"output_dir={tmp_path}/taken/run")
    assert code == 4 and "a part of this path is a file, not a directory" in told
