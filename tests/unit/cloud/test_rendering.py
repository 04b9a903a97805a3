"""What is sent, byte for byte; and that each target's own schema takes it, strictly.

After an intended change: EASYDISTILL_WRITE_GOLDEN=1 pytest tests/unit/cloud, and read the difference.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.clouds import CASES, TARGETS, golden, write

from easydistill.cli import main
from easydistill.cloud.target import Document
from easydistill.cloud.targets.pai_dlc import typed_request
from easydistill.errors import CloudError

EVERY = [(target, case) for target in TARGETS for case in CASES]
pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has neither the secrets nor the data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    monkeypatch.delenv("LABELS", raising=False)


def documents(target: str, case: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(golden(target, case).read_text(encoding="utf-8")))


@pytest.mark.parametrize(("target", "case"), EVERY)
def test_what_is_sent(target: str, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, settings = write(tmp_path, target, case)
    command = ["submit", str(config), "--to", target, "--target-config", str(settings), "--dry-run"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    if os.environ.get("EASYDISTILL_WRITE_GOLDEN"):
        golden(target, case).write_text(shown, encoding="utf-8")
    assert shown == golden(target, case).read_text(encoding="utf-8")
    assert main([*command, "--output", "sent"]) == 0
    assert Path("sent").read_text(encoding="utf-8") == shown
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([config.name, settings.name, "sent"])


@pytest.mark.parametrize("case", CASES)
def test_kubernetes_takes_it(case: str) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    kinds = []
    for manifest in documents("kubernetes", case):
        validator.validate(manifest, desired_version="1.32", strict=True)
        kinds.append(manifest["kind"])
    assert kinds == ["ConfigMap", "Job"] if case != "four_nodes" else ["ConfigMap", "Service", "Job"]


def test_the_validation_is_strict() -> None:
    validator = pytest.importorskip("kubernetes_validate")
    job = documents("kubernetes", "one_gpu")[1]
    job["spec"]["template"]["spec"]["containers"][0]["enviroment"] = []
    with pytest.raises(validator.ValidationError):
        validator.validate(job, desired_version="1.32", strict=True)


@pytest.mark.parametrize("case", CASES)
def test_kubeflow_takes_it(case: str) -> None:
    """Its models drop what they do not know, so what comes back must be what went in."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    validator = pytest.importorskip("kubernetes_validate")
    config, job = documents("kubeflow", case)
    validator.validate(config, desired_version="1.32", strict=True)
    back = models.TrainerV1alpha1TrainJob.from_dict(job)
    assert back is not None and back.to_dict() == job
    assert job["spec"]["runtimeRef"]["name"] == "torch-distributed"


@pytest.mark.parametrize("case", CASES)
def test_the_sdk_of_dlc_drops_nothing(case: str) -> None:
    pytest.importorskip("alibabacloud_pai_dlc20201203")
    text = golden("pai-dlc", case).read_text(encoding="utf-8")
    sent = typed_request(Document(text, ".json")).to_map()
    assert sent == json.loads(text) | {"CustomEnvs": []}, "the client leaves that one out"


def test_a_key_that_the_sdk_does_not_know_is_not_dropped_in_silence() -> None:
    pytest.importorskip("alibabacloud_pai_dlc20201203")
    with pytest.raises(CloudError, match="drops a part"):
        typed_request(Document('{"DisplayName": "a", "Retries": 3}', ".json"))


@pytest.mark.parametrize(("target", "case"), EVERY)
def test_no_secret_is_in_it(target: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the machine that submits has the secret in its environment."""
    secret = "sk-this-is-never-sent-0123456789"
    monkeypatch.setenv("TEACHER_KEY", secret)
    config, settings = write(tmp_path, target, case)
    command = ["submit", str(config), "--to", target, "--target-config", str(settings), "--dry-run", "-o", "sent"]
    assert main(command) == 0
    assert secret not in Path("sent").read_text(encoding="utf-8")
    assert os.environ["TEACHER_KEY"] == secret
