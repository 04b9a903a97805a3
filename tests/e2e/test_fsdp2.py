"""Training with parameters in parts (`fully_shard`): the same student as with whole copies."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.e2e.test_launch import alone, assert_all_gone, curve, sft_job, wait_for_step, weights
from tests.support.jobs import run_here, start, write_config

__all__ = ["alone"]


def fsdp2_job(folder: Path, student: Path, processes: int = 2, batch: int = 2, **training: Any) -> dict[str, Any]:
    job = sft_job(folder, student, processes, batch, **training)
    job["launch"]["strategy"] = "fsdp2"
    return job


def assert_same_student(ours: Path, theirs: Path, bound: float = 1e-4) -> None:
    one, other = (load_file(folder / "run/student/model.safetensors") for folder in (ours, theirs))
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = float(other[name].float().abs().max())
        assert torch.allclose(value.float(), other[name].float(), rtol=bound, atol=bound * scale), name


def test_parts_learn_what_whole_copies_learn(alone: Path, tiny_model: Path, tmp_path: Path) -> None:
    code, out = run_here(write_config(tmp_path, fsdp2_job(tmp_path, tiny_model)))
    assert code == 0, out
    assert len(curve(tmp_path)) == len(curve(alone))
    for ours, one in zip(curve(tmp_path), curve(alone), strict=True):
        assert ours == pytest.approx(one, rel=1e-4)
    assert_same_student(tmp_path, alone)


@pytest.fixture(scope="module")
def in_two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run in two processes, long enough to be interrupted."""
    folder = tmp_path_factory.mktemp("in-two")
    code, out = run_here(write_config(folder, fsdp2_job(folder, tiny_model, num_train_epochs=6)))
    assert code == 0, out
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_run_and_it_resumes(victim: int, in_two: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, fsdp2_job(tmp_path, tiny_model, num_train_epochs=6))
    run = start(config)
    ranks = wait_for_step(run, tmp_path, 4)
    os.kill(ranks[victim], signal.SIGKILL)
    err, _ = run.communicate(timeout=60)
    assert run.returncode == 1
    assert f"process {victim} of the stage was killed by SIGKILL" in err
    assert_all_gone(ranks)
    code, out = run_here(config)
    assert code == 0, out
    assert weights(tmp_path) == weights(in_two)


@pytest.mark.slow
def test_checkpoints_of_another_strategy_or_number_do_not_go_on(tiny_model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, fsdp2_job(tmp_path, tiny_model, num_train_epochs=6))
    run = start(config)
    wait_for_step(run, tmp_path, 4)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode == 130
    code, out = run_here(config, "--set", "launch.processes=1")
    assert code == 2
    assert "2 processes wrote" in out and "set launch.processes=2" in out
    code, out = run_here(config, "--set", "launch.strategy=ddp")
    assert code == 2
    assert "written under fsdp2" in out and "set launch.strategy=fsdp2" in out
    assert any((tmp_path / "run/stages").rglob("whole.json"))
