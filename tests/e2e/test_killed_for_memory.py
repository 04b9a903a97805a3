"""The kernel ends what takes more memory than its control group may have: it is told, by whoever is left to tell it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_out_of_memory import heavy_job
from tests.support.jobs import command, write_config
from tests.support.small_disk import memory_group

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run_in(group: Path | None, config: Path, *arguments: str) -> tuple[int, str]:
    """Run a job in a control group; exit code and what it printed."""
    enter = f"echo $$ > {group}/cgroup.procs && " if group is not None else ""
    shell = ["sh", "-c", f'{enter}exec "$@"', "sh", *command("run", str(config), *arguments)]
    done = subprocess.run(
        shell,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=config.parent,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    return done.returncode, done.stdout


def job(folder: Path, student: Path, **values: Any) -> Path:
    return write_config(folder, heavy_job(folder, student, rows=64, per_device_train_batch_size=32) | values)


def test_a_process_of_a_stage(tiny_model: Path, tmp_path: Path) -> None:
    config = job(tmp_path, tiny_model, launch={"processes": 2})
    with memory_group(f"easydistill-{os.getpid()}-crew", 900 << 20) as group:
        code, told = run_in(group, config)
        assert code == 4, told
    assert "of the stage was killed by SIGKILL: the kernel ended it because memory had run out" in told
    assert "943.7 MB is the container's or the job's limit, " in told
    assert "training.per_device_train_batch_size=" in told
    code, told = run_in(None, config, "--set", "training.per_device_train_batch_size=2")
    assert code == 0, told


def test_the_command_itself(tiny_model: Path, tmp_path: Path) -> None:
    config = job(tmp_path, tiny_model)
    with memory_group(f"easydistill-{os.getpid()}-alone", 550 << 20) as group:
        code, told = run_in(group, config)
        assert code == -9, told
        less = ("--set", "training.per_device_train_batch_size=1", "--set", "training.max_steps=1")
        _, told = run_in(group, config, *less)
    assert "note: the kernel ended the last attempt because memory had run out (576.7 MB is the container's" in told
    assert "less is needed with" in told
    assert run_in(None, config, *less)[0] == 0
