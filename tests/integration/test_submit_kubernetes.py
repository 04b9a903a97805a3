"""Jobs on Kubernetes and Kubeflow: the real kubectl talks to a server that speaks Kubernetes' protocol."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.support.clouds import golden, write
from tests.support.kube_server import KubeServer, kube_server, kubeconfig

from easydistill.cli import main

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeServer]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with kube_server() as found:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, found.url)))
        yield found


def submit(folder: Path, target: str = "kubernetes", case: str = "four_nodes", **changes: object) -> int:
    config, settings = write(folder, target, case, **changes)
    return main(["submit", str(config), "--to", target, "--target-config", str(settings)])


@pytest.mark.parametrize("target", ["kubernetes", "kubeflow"])
def test_from_submission_to_cancellation(
    target: str, server: KubeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(tmp_path, target) == 0
    assert f"submitted white-box-1 to {target}" in capsys.readouterr().out
    assert server.created == list(yaml.safe_load_all(golden(target, "four_nodes").read_text(encoding="utf-8")))
    assert main(["status", "runs/white_box"]) == 0
    assert f"white-box-1 on {target}: waiting" in capsys.readouterr().out

    kind = "jobs" if target == "kubernetes" else "trainjobs"
    job = server.objects[kind, "white-box-1"]
    condition = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "too many"}
    job["status"] = {"conditions": [condition], "failed": 4}
    assert main(["status", "runs/white_box"]) == 1
    assert "failed (Failed)" in (shown := capsys.readouterr().out) and "BackoffLimitExceeded too many" in shown
    job["status"] = {"conditions": [{"type": "Complete", "status": "True"}], "succeeded": 4}
    assert main(["status", "runs/white_box"]) == 0
    assert "done (Complete)" in capsys.readouterr().out

    server.logs = {f"white-box-1-{number}": f"first\nrank {number}\n" for number in range(4)}
    assert main(["logs", "runs/white_box", "--lines", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.rpartition("] ")[2] for line in lines) == [f"rank {number}" for number in range(4)]
    assert main(["logs", "runs/white_box", "--node", "2"]) == 0
    assert "job-completion-index=2" in server.selectors[-1] and "white-box-1" in server.selectors[-1]
    assert main(["logs", "runs/white_box", "--node", "4"]) == 1
    capsys.readouterr()

    assert main(["cancel", "runs/white_box"]) == 0
    assert not server.objects, "the ConfigMap and the Service too"
    assert main(["status", "runs/white_box"]) == 0
    assert "cancelled" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "words"),
    [("quota", "has no room"), ("forbidden", "ask for the rights"), ("unauthorized", "log in")],
)
def test_refused_as_a_whole(
    fault: str, words: str, server: KubeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of a job stays behind when a part of it is refused."""
    server.faults["jobs"] = [fault]
    assert submit(tmp_path) == 1
    assert words in capsys.readouterr().err
    assert [one["kind"] for one in server.created] == ["ConfigMap", "Service"] and not server.objects
    assert submit(tmp_path) == 0


def test_a_job_of_the_same_name_is_left_alone(
    server: KubeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(tmp_path) == 0
    shutil.rmtree("runs")
    assert submit(tmp_path) == 1
    assert "--name" in capsys.readouterr().err
    assert len(server.objects) == 3


def test_without_kubeflow(server: KubeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del server.groups["trainer.kubeflow.org/v1alpha1"]
    assert submit(tmp_path, "kubeflow") == 1
    assert "install Kubeflow Trainer" in capsys.readouterr().err
    assert not server.objects


def test_no_cluster(server: KubeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(tmp_path, context="elsewhere") == 1
    assert "another context" in capsys.readouterr().err
    kubeconfig(tmp_path, "http://127.0.0.1:9")
    assert submit(tmp_path) == 1
    assert "no cluster answers" in capsys.readouterr().err


def test_no_kubectl(
    server: KubeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert submit(tmp_path) == 1
    assert "kubectl is not installed" in capsys.readouterr().err


def test_fetch_from_a_volume(
    server: KubeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pod is started for it. kubectl is the real one, but for `exec`, which runs the command here: the protocol of
    `exec` is not HTTP."""
    volume = tmp_path / "volume"
    there = volume / "kd/runs/white_box"
    (there / "student").mkdir(parents=True)
    (there / "student/config.json").write_text("{}")
    (there / "stages/1-train/checkpoint-5").mkdir(parents=True)
    (there / "stages/1-train/checkpoint-5/big.bin").write_text("big")
    (there / "submissions").mkdir()
    (there / "submissions/9.json").write_text("not ours")
    real = shutil.which("kubectl")
    stand_in = tmp_path / "bin/kubectl"
    stand_in.parent.mkdir()
    stand_in.write_text(
        f'#!/bin/bash\nif [ "$1" = exec ]; then\n  shift 5\n  exec "${{@/\\/mnt\\/shared/{volume}}}"\n'
        f'elif [ "$1" = wait ]; then exit 0\nfi\nexec {real} "$@"\n'
    )
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")

    assert submit(tmp_path) == 0
    assert main(["fetch", "runs/white_box"]) == 0
    pod = server.created[-1]
    assert pod["kind"] == "Pod" and pod["spec"]["containers"][0]["volumeMounts"][0]["readOnly"]
    assert "pods" not in {kind for kind, _ in server.objects}, "the pod is removed"
    assert Path("runs/white_box/student/config.json").is_file()
    assert not list(Path("runs/white_box").rglob("checkpoint-*"))
    assert sorted(path.name for path in Path("runs/white_box/submissions").iterdir()) == ["1.json", "1.sent.yaml"]
    assert main(["fetch", "runs/white_box", "--checkpoints"]) == 0
    assert Path("runs/white_box/stages/1-train/checkpoint-5/big.bin").is_file()

    shutil.rmtree(there)
    capsys.readouterr()
    assert main(["fetch", "runs/white_box"]) == 1
    assert "kubectl exec failed" in capsys.readouterr().err
    assert "pods" not in {kind for kind, _ in server.objects}
