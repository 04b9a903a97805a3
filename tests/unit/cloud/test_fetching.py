"""Files of a run that took place elsewhere, from a mounted folder and from buckets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.clouds import settings

from easydistill.cli import main
from easydistill.cloud.records import Submission, claim, read_records, write_record
from easydistill.engine.copies import copying
from easydistill.errors import CloudError

RUN = "/mnt/shared/kd/runs/kd"


def submitted(folder: Path, target: str, **changes: Any) -> Path:
    """A run directory from which a job was submitted."""
    of_target = settings(target, "one_gpu") | changes
    run = folder / "runs/kd"
    record = Submission(1, target, "kd-1", ["easydistill"], RUN, 1, "1.sent.yaml", of_target, "now", id="kd-1")
    write_record(run, record)
    return run


def fill(folder: Path) -> None:
    for name in ("report.html", "stages/1-train/checkpoint-7/model.bin", "submissions/8.json", "student/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_from_a_mounted_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mount = {"path": "/mnt/shared", "source": "nas://x", "local": str(tmp_path / "nas")}
    run = submitted(tmp_path, "pai-dlc", mounts=[mount])
    assert main(["fetch", str(run)]) == 1
    assert "the job has not started yet" in capsys.readouterr().err
    fill(tmp_path / "nas/kd/runs/kd")
    (run / "kept.txt").write_text("ours")
    assert main(["fetch", str(run)]) == 0
    assert "report.html" in capsys.readouterr().out
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert found == {"report.html", "student/config.json", "submissions/1.json", "kept.txt", ".lock", ".fetched"}
    (run / "kept.txt").write_text("still ours")
    (run / "report.html").write_text("made again")
    assert main(["fetch", str(run), "--checkpoints"]) == 0
    assert (run / "stages/1-train/checkpoint-7/model.bin").is_file()
    assert (run / "kept.txt").read_text() == "still ours"


def test_what_was_written_here_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mount = {"path": "/mnt/shared", "source": "nas://x", "local": str(tmp_path / "nas")}
    run = submitted(tmp_path, "pai-dlc", mounts=[mount])
    fill(tmp_path / "nas/kd/runs/kd")
    (run / "summary.json").write_text("of a run on this machine")
    assert main(["fetch", str(run)]) == 1
    assert "summary.json: a run took place here" in capsys.readouterr().err
    (run / "summary.json").unlink()
    assert main(["fetch", str(run)]) == 0
    (run / "student/config.json").write_text("changed by hand")
    assert main(["fetch", str(run)]) == 1
    assert "student/config.json: it has changed here since it was fetched" in capsys.readouterr().err
    assert (run / "student/config.json").read_text() == "changed by hand"


def test_a_fetch_that_broke_off_is_begun_again(tmp_path: Path) -> None:
    mount = {"path": "/mnt/shared", "source": "nas://x", "local": str(tmp_path / "nas")}
    run = submitted(tmp_path, "pai-dlc", mounts=[mount])
    fill(tmp_path / "nas/kd/runs/kd")
    with pytest.raises(KeyboardInterrupt), copying(run):
        (run / "summary.json").write_text("a part of")
        raise KeyboardInterrupt
    assert main(["fetch", str(run)]) == 0


def test_from_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that its job kept in a store comes from there, by the same function as `api.fetch`."""
    pytest.importorskip("fsspec")
    from easydistill.config.storage import StorageConfig
    from easydistill.engine.interrupt import StopSignal
    from easydistill.remote.mirror import mirrored

    url, work = f"file://{tmp_path}/store/kd", tmp_path / "work"
    with mirrored(url, work, StorageConfig(), print, StopSignal()):
        fill(work)
    run = submitted(tmp_path, "pai-dlc")
    record = read_records(run)[0]
    write_record(run, replace(record, run_directory=url, store={}))
    assert main(["fetch", str(run)]) == 0
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert found == {"report.html", "student/config.json", "submissions/1.json", ".lock", ".fetched"}


def test_the_run_directory_is_the_shared_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mount = {"path": "/mnt/shared/kd", "source": "nas://x", "local": str(tmp_path)}
    assert main(["fetch", str(submitted(tmp_path, "pai-dlc", mounts=[mount]))]) == 1
    assert "nothing to copy" in capsys.readouterr().err


def test_storage_that_is_not_reached_from_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", str(submitted(tmp_path, "pai-dlc"))]) == 1
    assert "say where in the mount's `local`" in capsys.readouterr().err
    assert main(["fetch", str(tmp_path / "nowhere")]) == 1
    assert "nothing was submitted from here" in capsys.readouterr().err


BUCKETS = [
    ("pai-dlc", "oss://b.oss-cn-x.example/p/", "ossutil", "oss://b/p/kd/runs/kd/"),
    ("skypilot", "s3://b/p", "aws", "s3://b/p/kd/runs/kd/"),
    ("skypilot", "gs://b", "gcloud", "gs://b/kd/runs/kd/"),
]


@pytest.mark.parametrize(("target", "source", "tool", "place"), BUCKETS)
def test_from_a_bucket(
    target: str,
    source: str,
    tool: str,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the bucket's own tool, which a stand-in plays: it notes its arguments."""
    run = submitted(tmp_path, target, mounts=[{"path": "/mnt/shared", "source": source}])
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert main(["fetch", str(run)]) == 1
    assert f"{tool} is not installed" in capsys.readouterr().err
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / tool).write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/called\n')
    (tmp_path / "bin" / tool).chmod(0o755)
    assert main(["fetch", str(run)]) == 0
    called = (tmp_path / "called").read_text().splitlines()
    assert place in called and any(part.startswith("--exclude=") and "checkpoint-" in part for part in called)
    assert any(part.rstrip("/") == str(run) for part in called)


def test_a_damaged_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = submitted(tmp_path, "pai-dlc")
    record = run / "submissions/1.json"
    record.write_text(json.dumps({"number": 1}))
    assert main(["status", str(run)]) == 1
    assert "no record of a submission" in capsys.readouterr().err
    record.unlink()
    assert main(["status", str(run)]) == 1


def test_of_two_submits_at_once_only_one_gets_the_number(tmp_path: Path) -> None:
    run = submitted(tmp_path, "kubernetes")
    (first,) = read_records(run)
    second = replace(first, number=2, document="2.sent.yaml", id=None)
    claim(run, second)
    with pytest.raises(CloudError, match="another `submit` of this run is at work"):
        claim(run, replace(second, submitted="later"))
    assert read_records(run) == [first, second]
