"""A run keeps rates and peaks; a plan of the same work in another place tells what that run took, and one of the same
place what is kept and what runs again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.jobs import TRAINING, write_prompts

from easydistill import api
from easydistill.cli import main
from easydistill.data.manifest import Manifest
from easydistill.engine.usage import Usage

STAGES = ["label", "score", "train", "evaluate"]


def test_a_plan_tells_what_an_equal_run_took(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EASYDISTILL_RATES", str(tmp_path / "rates.jsonl"))
    prompts = [f"question {number}: " + "word " * (number % 7) for number in range(16)]
    config = {
        "job_type": "white_box_kd_local",
        "output_dir": str(tmp_path / "run"),
        "dataset": {"instruction_path": str(write_prompts(tmp_path, prompts))},
        "inference": {"backend": "transformers", "max_new_tokens": 8, "batch_size": 8},
        "models": {"teacher": str(tiny_model), "student": str(tiny_model)},
        "distillation": {"max_seq_length": 64},
        "training": {name: value for name, value in TRAINING.items() if name != "max_length"},
        "evaluation": {"heldout": 4, "max_new_tokens": 4},
    }
    ahead = api.plan(config)
    assert [(stage.name, stage.state, stage.why, stage.seconds) for stage in ahead] == [
        (name, "pending", "", None) for name in STAGES
    ]
    assert all(stage.estimate.memory_bytes for stage in ahead)

    api.run(config, quiet=True)
    folders = [tmp_path / "run" / "stages" / f"{number}-{name}" for number, name in enumerate(STAGES, start=1)]
    for stage, folder in zip(ahead, folders, strict=True):
        usage = Usage.read(folder)
        assert usage is not None and usage.peak_memory_bytes, "the run keeps each stage's peak"
        assert stage.estimate.memory_bytes is not None
        # Of so small a model it is the libraries, and what this process has besides.
        assert 0.2 < stage.estimate.memory_bytes / usage.peak_memory_bytes < 3

    elsewhere = api.plan(config | {"output_dir": str(tmp_path / "other")})
    for stage, folder in zip(elsewhere, folders, strict=True):
        manifest = Manifest.read(folder)
        assert manifest is not None and stage.seconds == pytest.approx(manifest.seconds, rel=0.01)

    path = tmp_path / "kd.json"
    path.write_text(json.dumps(config))
    assert main(["plan", str(path), "--set", "training.learning_rate=0.125"]) == 0
    told = capsys.readouterr().out
    assert "1. label      kept" in told and "2. score      kept" in told
    before = TRAINING["learning_rate"]
    assert f"3. train      runs: training.learning_rate changed from {json.dumps(before)} to 0.125" in told
    assert "4. evaluate   runs: train runs again" in told
    assert "in all: memory" in told and "that are free" in told and "time about" in told
