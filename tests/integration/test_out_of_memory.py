"""Trainings that need more memory than there is: settings that need less, and the same command once there is more."""

from __future__ import annotations

import json
import re
import resource
from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs import TRAINING, run_here, write_config
from tests.support.small_disk import address_space, limited

from easydistill import api
from easydistill.engine.machine.stages import thrift_of
from easydistill.jobs import stages_of
from easydistill.methods.shared.thrift import _changes, _line


def heavy_job(folder: Path, student: Path, rows: int = 16, **training: Any) -> dict[str, Any]:
    """Supervised training in one step of long rows."""
    answers = [{"instruction": f"question {n}", "output": "word of it " * 250} for n in range(rows)]
    (folder / "rows.json").write_text(json.dumps(answers))
    settings = {
        **TRAINING,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "max_length": 1024,
        "num_train_epochs": 1,
        "bf16": False,
    }
    return {
        "job_type": "black_box_kd_local",
        "output_dir": str(folder / "run"),
        "dataset": {"labeled_path": str(folder / "rows.json")},
        "models": {"student": str(student)},
        "training": settings | training,
        "evaluation": {"enabled": False},
    }


def test_a_training_that_runs_out_of_memory_names_settings_and_goes_on_with_more(
    tiny_model: Path, tmp_path: Path
) -> None:
    # What is loaded once is loaded before the limit is set.
    assert run_here(write_config(tmp_path, heavy_job(tmp_path, tiny_model, rows=1)))[0] == 0
    config = write_config(tmp_path, heavy_job(tmp_path, tiny_model))
    with limited(resource.RLIMIT_AS, address_space() + (48 << 20)):
        code, told = run_here(config)
    assert code == 4, told
    assert "error: memory has run out: " in told and "can't allocate memory" in told
    assert re.search(r"this process had [\d.]+ GB of addresses at most; ulimit -v allows [\d.]+ GB", told)
    assert "training.per_device_train_batch_size=" in told and "Traceback" not in told
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "failed" and summary["exit_code"] == 4
    assert run_here(config)[0] == 0


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({}, "training.per_device_train_batch_size=8 training.gradient_accumulation_steps=4 (as many rows a step)"),
        (
            {"per_device_train_batch_size": 6},
            "training.per_device_train_batch_size=3 training.gradient_accumulation_steps=4 (as many rows a step)",
        ),
        ({"per_device_train_batch_size": 1}, "training.gradient_checkpointing=true"),
        ({"max_tokens_per_batch": 4096}, "training.max_tokens_per_batch=2048"),
    ],
)
def test_settings_that_need_less_keep_the_rows_of_a_step(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any], first: str
) -> None:
    job = heavy_job(tmp_path, tiny_model, **settings)
    if "max_tokens_per_batch" in settings:
        del job["training"]["per_device_train_batch_size"]
    stage = stages_of(api.load(job).job)[0]
    lines = thrift_of(stage)
    assert 0 < len(lines) <= 4
    changes = next(_changes(stage._training))  # type: ignore[attr-defined]
    assert _line(changes, stage._training, "") == first  # type: ignore[attr-defined]
    for line in lines:
        sizes = dict(re.findall(r"training\.(\w+)=(\d+)", line))
        if "gradient_accumulation_steps" in sizes:
            rows = int(sizes["per_device_train_batch_size"]) * int(sizes["gradient_accumulation_steps"])
            assert rows == stage._training.per_device_train_batch_size * 2  # type: ignore[attr-defined]
