"""Small real jobs for end-to-end tests, and the command line run as a user runs it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from easydistill.cli import main

ROOT = Path(__file__).resolve().parents[2]
TRAINING: dict[str, Any] = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "max_length": 96,
    "logging_steps": 1,
    "save_steps": 3,
}


def write_prompts(folder: Path, prompts: Sequence[str]) -> Path:
    path = folder / "prompts.json"
    path.write_text(json.dumps([{"instruction": text} for text in prompts]))
    return path


def api_job(folder: Path, base_url: str, student: Path, prompts: Sequence[str], **inference: Any) -> dict[str, Any]:
    """Black-box distillation from an API into a student."""
    settings = {"base_url": base_url, "max_retry_wait": 0.2, "timeout": 2, "max_new_tokens": 32}
    return {
        "job_type": "black_box_kd_api",
        "output_dir": str(folder / "run"),
        "dataset": {
            "instruction_path": str(write_prompts(folder, prompts)),
            "labeled_path": str(folder / "labeled.json"),
        },
        "inference": settings | inference,
        "models": {"student": str(student)},
        "training": TRAINING,
        "evaluation": {"heldout": 8, "max_new_tokens": 8},
    }


def local_job(folder: Path, teacher: Path, student: Path, prompts: Sequence[str], **inference: Any) -> dict[str, Any]:
    """Black-box distillation from a model on this machine."""
    settings = {"backend": "transformers", "max_new_tokens": 24, "temperature": 0.9, "batch_size": 8}
    return {
        "job_type": "black_box_kd_local",
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(write_prompts(folder, prompts))},
        "inference": settings | inference,
        "models": {"teacher": str(teacher), "student": str(student)},
        "training": TRAINING,
        "evaluation": {"heldout": 8, "max_new_tokens": 8},
    }


def write_config(folder: Path, job: dict[str, Any]) -> Path:
    path = folder / "kd.json"
    path.write_text(json.dumps(job, indent=1))
    return path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "easydistill", *arguments]


def start(config: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`easydistill run CONFIG` in a process of its own."""
    return subprocess.Popen(
        command("run", str(config), *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=config.parent,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )


def run(config: Path, *arguments: str, timeout: float = 300, **environment: str) -> tuple[int, str]:
    """Run to the end; exit code and everything it printed."""
    process = start(config, *arguments, **environment)
    out, _ = process.communicate(timeout=timeout)
    return process.returncode, out


def run_here(config: Path, *arguments: str) -> tuple[int, str]:
    """As `run`, in this process: torch and its company are loaded already, which takes seconds otherwise."""
    printed = io.StringIO()
    with contextlib.chdir(config.parent), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(["run", str(config), *arguments])
    return code, printed.getvalue()
