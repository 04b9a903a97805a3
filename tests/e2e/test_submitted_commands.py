"""The commands of submitted jobs, run here as plain processes: killed they resume, and several make one run."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_launch import weights
from tests.e2e.test_nodes import job_of
from tests.support.clouds import TARGETS
from tests.support.fault_server import Running, running
from tests.support.jobs import api_job, run_here, write_config
from tests.support.pods import Machines
from tests.support.several import free_port

from easydistill.cli import main

SECRET = "sk-of-the-teacher-0123456789"
CONCURRENCY = 4
REFERENCES = {
    "kubernetes": "teacher/api-key",
    "kubeflow": "teacher/api-key",
    "pai-dlc": "{folder}/shared/api key",
    "skypilot": "environment",
}
SOURCES = {"kubernetes": "pvc:s", "kubeflow": "pvc:s", "pai-dlc": "nas://s", "skypilot": "volume:s"}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(latency=0.1) as found:
        yield found


def machines(target: str, folder: Path, job: dict[str, Any], nodes: int = 1, **more: Any) -> Machines:
    """Submit, as far as the document; the machines that have got it."""
    port = free_port()
    shared = folder / "shared"
    settings = {"image": "i", "nodes": nodes, "workdir": str(shared / "kd"), **more}
    settings["mounts"] = [{"path": str(shared), "source": SOURCES[target]}]
    if target == "pai-dlc":
        settings |= {"region": "r", "workspace_id": "1", "instance_type": "ecs.g7.large"}
    elif target != "kubeflow":
        settings["port"] = port
    (shared / "kd").mkdir(parents=True, exist_ok=True)
    (shared / "api key").write_text(SECRET)
    config = write_config(folder, job)
    (folder / "target.json").write_text(json.dumps(settings))
    of_target = ["--target-config", str(folder / "target.json")]
    assert main(["submit", str(config), "--to", target, *of_target, "--dry-run", "-o", str(folder / "sent")]) == 0
    document = (folder / "sent").read_text(encoding="utf-8")
    assert SECRET not in document
    secrets = {"teacher/api-key": SECRET, "TEACHER_KEY": SECRET}
    return Machines(target, document, folder / "machine", secrets, port)


def asking(target: str, folder: Path, server: Running, job: dict[str, Any]) -> Machines:
    """The same for a job that asks a teacher."""
    job["inference"] |= {"api_key": "${env:TEACHER_KEY}", "max_concurrency": CONCURRENCY}
    job["output_dir"] = "runs/kd"
    return machines(target, folder, job, secrets={"TEACHER_KEY": REFERENCES[target].format(folder=folder)})


def label_job(folder: Path, server: Running, prompts: list[str]) -> dict[str, Any]:
    job = api_job(folder, server.base_url, folder, prompts)
    return {key: value for key, value in job.items() if key not in ("models", "training", "evaluation")} | {
        "job_type": "label"
    }


def journalled(folder: Path) -> int:
    path = folder / "shared/kd/runs/kd/stages/1-label/journal.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_after(machine: Machines, folder: Path, replies: int, signal_number: int) -> int:
    """Run until so many replies are on disk; the exit code."""
    process = machine.start(0)
    ends = time.monotonic() + 120
    while journalled(folder) < replies:
        assert process.poll() is None and time.monotonic() < ends, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal_number)
    process.communicate(timeout=60)
    return process.returncode


def assert_nothing_was_asked_twice(server: Running, prompts: list[str], kills: int) -> None:
    attempts = server.stats()["attempts"]
    asked = [attempts[text] for text in prompts]
    assert min(asked) >= 1 and sum(asked) - len(asked) <= kills * CONCURRENCY


@pytest.mark.parametrize(
    "target", [name if name == "kubernetes" else pytest.param(name, marks=pytest.mark.slow) for name in TARGETS]
)
def test_preempted(target: str, server: Running, tmp_path: Path) -> None:
    """A labelling job is killed outright; started again with the same command, it asks for the rest."""
    prompts = [f"{target} question {number}" for number in range(40)]
    machine = asking(target, tmp_path, server, label_job(tmp_path, server, prompts))
    assert kill_after(machine, tmp_path, 8, signal.SIGKILL) == -signal.SIGKILL
    process = machine.start(0)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert len(json.loads((tmp_path / "labeled.json").read_text())) == len(prompts)
    assert_nothing_was_asked_twice(server, prompts, kills=1)
    run_files = (path for path in (tmp_path / "shared/kd").rglob("*") if path.is_file())
    assert not any(SECRET.encode() in path.read_bytes() for path in run_files)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_training_job_is_told_to_end_and_resumes(tiny_model: Path, server: Running, tmp_path: Path) -> None:
    """What Kubernetes does to a pod that has to go: SIGTERM first. The exit code is that of no failure."""
    prompts = [f"train on question {number}" for number in range(40)]
    job = api_job(tmp_path, server.base_url, tiny_model, prompts)
    machine = asking("kubernetes", tmp_path, server, job)
    assert kill_after(machine, tmp_path, 8, signal.SIGTERM) in (130, -signal.SIGTERM)
    process = machine.start(0)
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 0, out
    assert_nothing_was_asked_twice(server, prompts, kills=1)
    summary = json.loads((tmp_path / "shared/kd/runs/kd/summary.json").read_text())
    assert summary["status"] == "done" and (tmp_path / "shared/kd/runs/kd/student/model.safetensors").is_file()


@pytest.fixture(scope="module")
def in_two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run in two processes of one machine."""
    folder = tmp_path_factory.mktemp("in-two")
    code, out = run_here(write_config(folder, job_of(folder, tiny_model)))
    assert code == 0, out
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", TARGETS)
def test_two_machines_make_one_run(target: str, in_two: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Each machine finds out which one it is, and they train what two processes of one machine train."""
    job = job_of(tmp_path, tiny_model)
    job |= {"launch": {"processes": 1}, "output_dir": str(tmp_path / "shared/run")}
    job["training"].pop("output_dir", None)
    both = machines(target, tmp_path, job, nodes=2)
    processes = [both.start(rank) for rank in (1, 0)]
    said = [process.communicate(timeout=900)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    assert weights(tmp_path / "shared") == weights(in_two)
