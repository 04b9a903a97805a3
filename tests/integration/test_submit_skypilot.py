"""Jobs with SkyPilot: `sky` is a stand-in that keeps a queue; a slow test has SkyPilot's own code parse the YAML."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.support.clouds import CASES, golden, write

from easydistill.cli import main

SKY = """#!/usr/bin/env python3
import json, os, pathlib, sys, yaml
here = pathlib.Path(__file__).parent
queue = here / "queue.json"
jobs = json.loads(queue.read_text()) if queue.exists() else []
print(json.dumps(sys.argv[1:]), file=(here / "calls").open("a"))
verb, rest = sys.argv[2], sys.argv[3:]
if (here / "fault").exists():
    sys.exit((here / "fault").read_text())
if verb == "launch":
    task = yaml.safe_load(open(rest[-1]))
    given = {rest[n + 1]: os.environ[rest[n + 1]] for n, part in enumerate(rest) if part == "--secret"}
    assert set(given) == set(task.get("secrets", {})), given
    (here / "task.yaml").write_text(open(rest[-1]).read())
    jobs.append({"job_id": len(jobs) + 7, "job_name": task["name"], "status": "STARTING", "infra": "aws"})
elif verb == "queue":
    print("Using the server at example.")
    print(json.dumps(jobs, indent=2))
elif verb == "logs":
    print("(worker1) first"), print("(worker1) last")
elif verb == "cancel":
    next(job for job in jobs if str(job["job_id"]) == rest[-1])["status"] = "CANCELLED"
queue.write_text(json.dumps(jobs))
"""


@pytest.fixture
def sky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-in, which keeps its state there."""
    import sys

    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "sky"
    program.write_text(SKY.replace("/usr/bin/env python3", sys.executable, 1))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return folder


def submit(folder: Path, case: str) -> int:
    config, settings = write(folder, "skypilot", case)
    return main(["submit", str(config), "--to", "skypilot", "--target-config", str(settings)])


def test_from_submission_to_cancellation(sky: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(tmp_path, "four_nodes") == 0
    assert "submitted white-box-1 to skypilot as 7" in capsys.readouterr().out
    assert (sky / "task.yaml").read_text() == golden("skypilot", "four_nodes").read_text(encoding="utf-8")
    assert main(["status", "runs/white_box"]) == 0
    assert "waiting (STARTING)" in capsys.readouterr().out
    queue = json.loads((sky / "queue.json").read_text())
    queue[0] |= {"status": "FAILED_NO_RESOURCE", "failure_reason": "no H100 anywhere"}
    (sky / "queue.json").write_text(json.dumps(queue))
    assert main(["status", "runs/white_box"]) == 1
    assert "no H100 anywhere" in capsys.readouterr().out
    assert main(["logs", "runs/white_box", "--lines", "5", "--follow"]) == 0
    assert capsys.readouterr().out == "(worker1) first\n(worker1) last\n"
    assert main(["logs", "runs/white_box", "--node", "1"]) == 1
    assert main(["cancel", "runs/white_box"]) == 0
    capsys.readouterr()
    assert main(["status", "runs/white_box"]) == 0
    assert "cancelled (CANCELLED)" in capsys.readouterr().out
    calls = [json.loads(line) for line in (sky / "calls").read_text().splitlines()]
    assert ["jobs", "logs", "7", "--follow", "--tail", "5"] in calls


def test_secrets_go_from_the_environment_to_sky(
    sky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    config, settings = write(tmp_path, "skypilot", "api_only")
    command = ["submit", str(config), "--to", "skypilot", "--target-config", str(settings)]
    assert main(command) == 1
    assert "export them" in capsys.readouterr().err
    secret = "sk-of-the-teacher-0123456789"
    monkeypatch.setenv("TEACHER_KEY", secret)
    assert main(command) == 0
    # Its run directory has an absolute path on the job's machines, and another one here.
    record = json.loads(Path("runs/label/submissions/1.json").read_text())
    assert record["run_directory"] == "/mnt/shared/runs/label"
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(secret in path.read_text() for path in kept), "neither in a file nor in an argument"


def test_refused(sky: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sky / "fault").write_text("sky.exceptions.NoCloudAccessError: No cloud access is set up.")
    assert submit(tmp_path, "one_gpu") == 1
    assert "sky check" in capsys.readouterr().err
    assert not list(Path("runs/One GPU/submissions").iterdir())


def test_a_job_that_sky_has_taken_is_not_forgotten(
    sky: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The queue cannot be read just after the job was sent: a second `submit` would make a second job."""
    program = sky / "sky"
    whole = program.read_text()
    program.write_text(whole.replace('elif verb == "queue":', 'elif verb == "queue":\n    sys.exit("no connection")'))
    assert submit(tmp_path, "one_gpu") == 1
    assert "sky has taken one-gpu-1, and does not tell its id" in capsys.readouterr().err
    program.write_text(whole)
    assert main(["status", "runs/One GPU"]) == 0
    assert "waiting (STARTING)" in capsys.readouterr().out
    assert submit(tmp_path, "one_gpu") == 1
    assert "wait for its end, or" in capsys.readouterr().err


def test_no_sky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert submit(tmp_path, "one_gpu") == 1
    assert "sky is not installed" in capsys.readouterr().err


PARSE = """
import json, sys, yaml, sky

for file in sys.argv[1:]:
    sent = yaml.safe_load(open(file))
    secrets = [(name, "x") for name in sent.get("secrets", {})] or None
    found = sky.Task.from_yaml_config(yaml.safe_load(open(file)), secrets_overrides=secrets).to_yaml_config()
    kept = ("name", "num_nodes", "run", "envs", "volumes")
    same = all(found.get(name) == sent.get(name) for name in kept)
    recovers = found["resources"]["job_recovery"] == sent["resources"]["job_recovery"]
    print(file, same and recovers and set(found.get("file_mounts") or {}) == set(sent.get("file_mounts", {})))
try:
    sky.Task.from_yaml_config({**yaml.safe_load(open(sys.argv[1])), "retries": 3})
except Exception as error:
    print("strict", "retries" in str(error))
"""


@pytest.mark.slow
def test_skypilot_takes_it(tmp_path: Path) -> None:
    """In an environment of its own, for its requirements and ours do not fit together: `make test-slow` makes it."""
    python = os.environ.get("EASYDISTILL_SKYPILOT_PYTHON", ".venv-skypilot/bin/python")
    if shutil.which(python) is None:
        pytest.skip("SkyPilot is not installed")
    files = [str(golden("skypilot", case)) for case in CASES]
    home = {"HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | home
    done = subprocess.run([python, "-c", PARSE, *files], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [*(f"{file} True" for file in files), "strict True"]
