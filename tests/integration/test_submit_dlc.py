"""Jobs on PAI-DLC: the real SDK talks to a server that speaks its protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.clouds import golden, write
from tests.support.dlc_server import DlcServer, dlc_server

from easydistill.cli import main
from easydistill.cloud import alibaba

pytest.importorskip("alibabacloud_pai_dlc20201203")
KEY = "LTAIexampleexample"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DlcServer]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "secret-of-the-key")
    monkeypatch.setattr(alibaba, "_LONGEST_WAIT", 0.01)
    with dlc_server() as found:
        yield found


def submit(server: DlcServer, folder: Path, case: str = "four_nodes", *more: str) -> int:
    config, settings = write(folder, "pai-dlc", case, endpoint=server.url)
    return main(["submit", str(config), "--to", "pai-dlc", "--target-config", str(settings), *more])


def test_from_submission_to_cancellation(server: DlcServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(server, tmp_path) == 0
    assert "submitted white-box-1 to pai-dlc as dlc0001" in capsys.readouterr().out
    (sent,) = server.of("CreateJob")
    assert sent.body == json.loads(golden("pai-dlc", "four_nodes").read_text(encoding="utf-8"))
    assert KEY in str(sent.headers) and "secret-of-the-key" not in str(sent)

    record = json.loads(Path("runs/white_box/submissions/1.json").read_text())
    assert (record["id"], record["target"], record["number"]) == ("dlc0001", "pai-dlc", 1)
    assert record["command"] == ["easydistill", "run", "/etc/easydistill/four_nodes.json"]
    kept = Path("runs/white_box/submissions/1.sent.json").read_text(encoding="utf-8")
    assert json.loads(kept) == sent.body
    assert "secret-of-the-key" not in json.dumps(record)

    # From here on only the run directory is needed.
    for path in tmp_path.glob("*.json"):
        path.unlink()
    assert main(["status", "runs/white_box"]) == 0
    shown = capsys.readouterr().out
    assert "white-box-1 on pai-dlc: running (Running)" in shown and "dlc0001-worker-1 Running" in shown
    assert main(["logs", "runs/white_box", "--node", "1", "--lines", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"[dlc0001-worker-1] line {number} of dlc0001-worker-1" for number in (1, 2)]
    assert main(["logs", "runs/white_box"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert main(["cancel", "runs/white_box"]) == 0
    capsys.readouterr()
    assert main(["status", "runs/white_box"]) == 0
    assert "cancelled (Stopped)" in capsys.readouterr().out


def test_one_job_at_a_time_writes_into_a_run_directory(
    server: DlcServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(server, tmp_path) == 0
    assert submit(server, tmp_path) == 1
    assert "white-box-1 of this run is running" in capsys.readouterr().err
    server.jobs["dlc0001"]["Status"] = "Failed"
    assert main(["status", "runs/white_box"]) == 1
    assert submit(server, tmp_path) == 0
    assert [request.body["DisplayName"] for request in server.of("CreateJob")] == ["white-box-1", "white-box-2"]
    assert main(["status", "runs/white_box", "--number", "1"]) == 1
    assert main(["status", "runs/white_box", "--number", "3"]) == 1
    assert "only 1 to 2" in capsys.readouterr().err


def test_throttled_calls_are_made_again(server: DlcServer, tmp_path: Path) -> None:
    server.faults["CreateJob"] = ["throttled", "throttled"]
    server.faults["GetJob"] = ["throttled", "oops", "oops"]
    assert submit(server, tmp_path) == 0
    assert len(server.of("CreateJob")) == 3 and len(server.jobs) == 1
    assert main(["status", "runs/white_box"]) == 0
    assert len(server.of("GetJob")) == 4


def test_throttled_to_the_end(server: DlcServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.faults["CreateJob"] = ["throttled"] * 9
    assert submit(server, tmp_path) == 1
    assert "wait a minute" in capsys.readouterr().err
    assert not server.jobs and not list(Path("runs/white_box/submissions").iterdir())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("quota", ["QuotaExceeded", "ask for less"]),
        ("bad_key", ["InvalidAccessKeyId", "ALIBABA_CLOUD_ACCESS_KEY_ID"]),
        ("forbidden", ["NoPermission", "ask for the right"]),
    ],
)
def test_refused(
    fault: str, words: list[str], server: DlcServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults["CreateJob"] = [fault]
    assert submit(server, tmp_path) == 1
    told = capsys.readouterr().err
    assert all(word in told for word in words), told
    assert "secret-of-the-key" not in told and "Traceback" not in told
    assert len(server.of("CreateJob")) == 1
    # The next one is the first one again.
    assert submit(server, tmp_path) == 0
    assert server.of("CreateJob")[-1].body["DisplayName"] == "white-box-1"


def test_an_answer_that_is_lost_makes_no_second_job(server: DlcServer, tmp_path: Path) -> None:
    server.faults["CreateJob"] = ["lost"]
    assert submit(server, tmp_path) == 0
    assert len(server.of("CreateJob")) == 1 and list(server.jobs) == ["dlc0001"]
    assert json.loads(Path("runs/white_box/submissions/1.json").read_text())["id"] == "dlc0001"


def test_a_failure_that_made_no_job(server: DlcServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.faults["CreateJob"] = ["oops"]
    assert submit(server, tmp_path) == 1
    assert "no job called white-box-1 was made" in capsys.readouterr().err
    assert submit(server, tmp_path) == 0


def test_killed_between_the_request_and_its_record(
    server: DlcServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The record has no id then: the job is found by its name."""
    assert submit(server, tmp_path) == 0
    path = Path("runs/white_box/submissions/1.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id": None}))
    assert submit(server, tmp_path) == 1
    assert main(["status", "runs/white_box"]) == 0
    assert json.loads(path.read_text())["id"] == "dlc0001"
    server.jobs.clear()
    assert main(["status", "runs/white_box"]) == 0
    assert "gone" in capsys.readouterr().out
    assert submit(server, tmp_path) == 0


def test_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    # The library reads the environment when it is imported.
    from alibabacloud_credentials.utils import auth_util

    for name in ("environment_access_key_id", "environment_access_key_secret"):
        monkeypatch.setattr(auth_util, name, None)
    monkeypatch.setattr(auth_util, "environment_ecs_metadata_disabled", "true")
    monkeypatch.setenv("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true")
    config, settings = write(tmp_path, "pai-dlc", "four_nodes")
    assert main(["submit", str(config), "--to", "pai-dlc", "--target-config", str(settings)]) == 1
    told = capsys.readouterr().err
    assert "no credentials" in told and "ALIBABA_CLOUD_ACCESS_KEY_ID" in told
    assert not Path("runs").exists()


def test_no_answer(
    server: DlcServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, settings = write(tmp_path, "pai-dlc", "four_nodes", endpoint="http://127.0.0.1:9")
    assert main(["submit", str(config), "--to", "pai-dlc", "--target-config", str(settings)]) == 1
    told = capsys.readouterr().err
    assert "CreateJob" in told and "Traceback" not in told
    # It may have been sent: that is found out later, by its name.
    assert json.loads(Path("runs/white_box/submissions/1.json").read_text())["id"] is None
