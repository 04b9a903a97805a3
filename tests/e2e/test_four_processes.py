"""Four processes learn what one learns, under each strategy: the losses, the norms and the student, within 1e-4."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_deepspeed import assert_same, exact_norms, result, untied
from tests.e2e.test_launch import sft_job
from tests.e2e.test_launch_preferences import assert_same_course, pairs_job
from tests.e2e.test_launch_rl import SPREAD, policy_job
from tests.support.jobs import run_here, write_config

__all__ = ["untied"]
pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow

PROCESSES, ROWS = 4, 4
"""Rows of a micro-batch of all processes together."""
TRAININGS: dict[str, dict[str, Any]] = {
    "sft": {"teaches": False},
    "kd": {},
    "lora": {"lora": {"r": 4}},
    "untied": {"tied": False},
    "packed": {"packing": True, "gradient_checkpointing": True},
}


def training_job(folder: Path, student: Path, processes: int, *, teaches: bool = True, **training: Any) -> Any:
    """White-box distillation; without `teaches`, supervised fine-tuning."""
    made = sft_job(folder, student, processes, ROWS // processes, max_steps=6, **training)
    if not teaches:
        made["job_type"] = "black_box_kd_local"
        del made["distillation"], made["models"]["teacher"]
        made["training"]["max_length"] = 96
    return made


def run(folder: Path, made: dict[str, Any], *, exact: bool = True) -> Path:
    """
    Args:
        exact: whether a process alone clips by exact norms, as strategies with parts do. `ddp` has torch's own.
    """
    folder.mkdir(exist_ok=True)
    with exact_norms() if exact else contextlib.nullcontext():
        code, out = run_here(write_config(folder, made))
    assert code == 0, out
    assert (f"{PROCESSES} processes" in out) == (made["launch"]["processes"] == PROCESSES)
    return folder


@pytest.fixture(scope="module")
def alone(tiny_model: Path, untied: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """What one process learns, each training once."""
    known: dict[str, Path] = {}

    def find(tied: bool, exact: bool, **training: Any) -> Path:
        key = json.dumps([tied, exact, training], sort_keys=True)
        if key not in known:
            folder = tmp_path_factory.mktemp("alone")
            made = training_job(folder, tiny_model if tied else untied, 1, **training)
            known[key] = run(folder, made, exact=exact)
        return known[key]

    return find


@pytest.mark.parametrize("strategy", ["ddp", "zero3", "fsdp2"])
@pytest.mark.parametrize("training", TRAININGS)
def test_rows_and_signals(
    training: str, strategy: str, alone: Callable[..., Path], tiny_model: Path, untied: Path, tmp_path: Path
) -> None:
    settings = dict(TRAININGS[training])
    tied = settings.pop("tied", True)
    if not tied:
        # Adam divides by the size of a gradient: where that is rounding alone, so would be the update.
        settings["adam_epsilon"] = 1e-5
    made = training_job(tmp_path, tiny_model if tied else untied, PROCESSES, **settings)
    made["launch"]["strategy"] = strategy
    assert_same(result(run(tmp_path, made)), result(alone(tied, strategy != "ddp", **settings)))


@pytest.fixture(scope="module")
def pairs_alone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs-alone")
    return run(folder, pairs_job(folder, tiny_model, 1, ROWS))


@pytest.mark.parametrize("strategy", ["ddp", "zero3", "fsdp2"])
def test_pairs(strategy: str, pairs_alone: Path, tiny_model: Path, tmp_path: Path) -> None:
    made = pairs_job(tmp_path, tiny_model, PROCESSES, ROWS // PROCESSES)
    made["launch"]["strategy"] = strategy
    assert_same_course(run(tmp_path, made), pairs_alone, "train", "preferences")


def test_own_answers(tiny_model: Path, tmp_path: Path) -> None:
    folders = []
    for processes in (PROCESSES, 1):
        folder = tmp_path / str(processes)
        folder.mkdir()
        folders.append(run(folder, policy_job(folder, tiny_model, processes, 8 // processes, policy=SPREAD)))
    assert_same_course(*folders, "train", "policy", "heldout")
