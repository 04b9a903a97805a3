"""Training in several processes: the same student as in one, however it is interrupted."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs import TRAINING, run_here, start, write_config

QUESTIONS = [f"question {number}: " + "word " * (number % 13) for number in range(37)]


def sft_job(folder: Path, student: Path, processes: int, batch: int, **training: Any) -> dict[str, Any]:
    rows = folder / "rows.json"
    rows.write_text(json.dumps([{"instruction": text, "output": f"{text} it is."} for text in QUESTIONS]))
    return {
        "job_type": "white_box_kd_local",
        "output_dir": str(folder / "run"),
        "dataset": {"labeled_path": str(rows)},
        "models": {"teacher": str(student), "student": str(student)},
        "distillation": {"kd_ratio": 0.5, "distillation_type": "forward_kld", "max_seq_length": 96},
        "training": {
            **{name: value for name, value in TRAINING.items() if name != "max_length"},
            "per_device_train_batch_size": batch,
            **training,
        },
        "evaluation": {"heldout": 0},
        "launch": {"processes": processes},
    }


def curve(folder: Path) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines if line["stage"] == "train"]


@pytest.fixture(scope="module")
def alone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    code, out = run_here(write_config(folder, sft_job(folder, tiny_model, 1, 4)))
    assert code == 0, out
    return folder


def test_two_processes_learn_what_one_learns(alone: Path, tiny_model: Path, tmp_path: Path) -> None:
    code, out = run_here(write_config(tmp_path, sft_job(tmp_path, tiny_model, 2, 2)))
    assert code == 0, out
    assert len(curve(tmp_path)) == len(curve(alone))
    for ours, one in zip(curve(tmp_path), curve(alone), strict=True):
        assert ours == pytest.approx(one, rel=1e-4)
