"""A stage's task goes to other machines and is the same there, but its secrets do not go."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from easydistill import api
from easydistill.config.job import JobConfig
from easydistill.data.manifest import Manifest, RowCounts
from easydistill.engine.secrets import Redactor
from easydistill.engine.stage import Artifact
from easydistill.errors import EasyDistillError
from easydistill.launch.messages import Task
from easydistill.launch.tasks import task_from_json, task_to_json

KEY = b"key"


def job(api_key: str) -> JobConfig:
    return api.load({
        "job_type": "black_box_kd_api",
        "dataset": {"instruction_path": "rows.json"},
        "inference": {"base_url": "http://localhost/v1", "api_key": api_key, "prices": {"input": 1, "output": 2}},
        "models": {"student": "student"},
        "launch": {"nodes": 2, "rendezvous": "a:1"},
    }).job  # fmt: skip


def task_of(job: Any) -> Task:
    manifest = Manifest(
        "label", "ff", {"a": 1}, {"x.json": "00"}, RowCounts(2, 1, {"parse": 1}), {}, {}, 1.0, "", "", {}
    )
    return Task(
        job_type=job.job_type,
        job=job.model_dump(by_alias=True, exclude_unset=True),
        launch=job.launch,
        stage="train",
        directory=Path("/runs/stages/2-train"),
        run_directory=Path("/runs"),
        inputs={"label": Artifact(Path("/runs/stages/1-label"), manifest)},
        fingerprint="aa",
        started=datetime.datetime(2026, 1, 2, 3, 4, 5),
        redactor=Redactor(),
        said=frozenset({"b", "a"}),
        metrics=Path("/runs/metrics.jsonl"),
        quiet=False,
        deterministic=True,
    )


def test_a_task_is_the_same_elsewhere() -> None:
    ours = job("sk-secret-123")
    sent = json.dumps(task_to_json(task_of(ours), KEY))
    assert "sk-secret-123" not in sent
    task = task_from_json(json.loads(sent), KEY, job("sk-secret-123"))
    alike = {
        name: getattr(task_of(ours), name) for name in ("job_type", "launch", "stage", "inputs", "started", "said")
    }
    assert {name: getattr(task, name) for name in alike} == alike
    # Other machines neither show progress nor write metrics.
    assert task.quiet and task.metrics is None
    again = type(ours).model_validate(task.job)
    assert again == ours
    assert again.inference.api_key == SecretStr("sk-secret-123")  # type: ignore[attr-defined]
    assert task.redactor.text("sk-secret-123") == "[redacted]"


def test_a_secret_that_is_another_here_is_told() -> None:
    sent = task_to_json(task_of(job("sk-secret-123")), KEY)
    with pytest.raises(EasyDistillError, match=r"inference\.api_key is another here.*\n.*the same environment"):
        task_from_json(sent, KEY, job("sk-another-1"))


def test_an_unknown_kind_of_value_is_no_silent_text() -> None:
    task = dataclasses.replace(task_of(job("sk-secret-123")), job={"field": object()})
    with pytest.raises(TypeError, match="object"):
        task_to_json(task, KEY)
