"""Jobs in two processes that are long enough to be killed at many moments."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.jobs import TRAINING

QUESTIONS = [f"question {number}: " + "word " * (number % 13) for number in range(37)]
PAIRS = [
    {
        "prompt": f"question {number}: " + "word " * (number % 7),
        "chosen": f"{number} is the answer." + " yes" * (number % 4),
        "rejected": "no" + " idea" * (number % 3),
    }
    for number in range(21)
]
PROMPTS = [{"instruction": f"What is {number} plus {number % 3}?", "output": "x"} for number in range(14)]
_TRAINING = {
    **TRAINING,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 16,
    "bf16": False,
}


def supervised(folder: Path, student: Path, strategy: str) -> dict[str, Any]:
    """Supervised fine-tuning on given answers: one stage in several processes."""
    made = distillation(folder, student, strategy)
    del made["signals"], made["distillation"], made["models"]["teacher"]
    return {**made, "job_type": "black_box_kd_local", "training": _TRAINING}


def distillation(folder: Path, student: Path, strategy: str) -> dict[str, Any]:
    """The teacher scores given answers, then the student learns from its distributions."""
    rows = [{"instruction": text, "output": f"{text} it is."} for text in QUESTIONS]
    (folder / "rows.json").write_text(json.dumps(rows))
    return {
        "job_type": "white_box_kd_local",
        "output_dir": str(folder / "run"),
        "dataset": {"labeled_path": str(folder / "rows.json")},
        "models": {"teacher": str(student), "student": str(student)},
        "signals": {"shard_tokens": 128, "max_batch_tokens": 64},
        "distillation": {"kd_ratio": 0.5, "distillation_type": "forward_kld", "max_seq_length": 96},
        "training": {name: value for name, value in _TRAINING.items() if name != "max_length"},
        "evaluation": {"enabled": False},
        "launch": {"processes": 2, "strategy": strategy},
    }


def preferences(folder: Path, student: Path, strategy: str) -> dict[str, Any]:
    """DPO."""
    (folder / "pairs.json").write_text(json.dumps(PAIRS))
    return {
        "job_type": "dpo",
        "output_dir": str(folder / "run"),
        "dataset": {"labeled_path": str(folder / "pairs.json")},
        "models": {"student": str(student)},
        "training": _TRAINING,
        "evaluation": {"heldout": 4},
        "launch": {"processes": 2, "strategy": strategy},
    }


JOBS: dict[str, Callable[[Path, Path, str], dict[str, Any]]] = {
    "supervised": supervised,
    "distillation": distillation,
    "preferences": preferences,
}
