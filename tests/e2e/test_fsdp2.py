"""Training with parameters in parts (`fully_shard`): the same student as with whole copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.e2e.test_launch import alone, curve, sft_job
from tests.support.jobs import run_here, write_config

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
