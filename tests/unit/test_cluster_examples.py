"""The shipped configs for several GPUs and machines: their students fit, by what `plan` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_memory import QWEN_7B
from tests.unit.test_sharded_memory import QWEN_32B

from easydistill import api
from easydistill.config.models import ModelsConfig
from easydistill.methods.shared.estimates import TrainingFacts, memory_notes

CLUSTER = Path(__file__).parents[2] / "examples/cluster"


@pytest.mark.parametrize(
    ("name", "shape", "ranks"), [("eight_gpus.json", QWEN_7B, 8), ("four_nodes.json", QWEN_32B, 32)]
)
def test_the_student_fits(
    name: str, shape: dict[str, Any], ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "k")
    job: Any = api.load(CLUSTER / name, []).job
    (tmp_path / "config.json").write_text(json.dumps(shape))
    training = job.training.model_copy(update={"bf16": True, "max_length": getattr(job, "max_length", None) or 8192})
    models = ModelsConfig(student=str(tmp_path))
    (line,) = memory_notes(TrainingFacts(models, training, job.launch))
    assert f"in each of {ranks} processes under fsdp2" in line and line.endswith("it can have 80 GB")
    (line,) = memory_notes(TrainingFacts(models, training, job.launch.model_copy(update={"strategy": "ddp"})))
    assert "but can have 80 GB; with launch.strategy=" in line
