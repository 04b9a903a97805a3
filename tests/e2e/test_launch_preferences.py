"""Preference training and reward models in several processes: the same student as in one, however it is interrupted."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.e2e.test_launch import assert_all_gone, ranks_of, wait_for_step, weights
from tests.support.jobs import TRAINING, run_here, start, write_config

PAIRS = [
    {
        "prompt": f"question {number}: " + "word " * (number % 7),
        "chosen": f"{number} is the answer." + " yes" * (number % 4),
        "rejected": "no" + " idea" * (number % 3),
        "gap": ("small", "large")[number % 2],
        **({"beta": 0.3} if number % 5 == 0 else {}),
    }
    for number in range(21)
]
"""17 are trained on, in micro-batches of four: of the last one, a single pair, one of two processes has nothing."""


def pairs_job(folder: Path, student: Path, processes: int, batch: int, **changes: Any) -> dict[str, Any]:
    rows = folder / "pairs.json"
    rows.write_text(json.dumps(changes.pop("rows", PAIRS)))
    training = changes.pop("training", {})
    return {
        "job_type": "dpo",
        "output_dir": str(folder / "run"),
        "dataset": {"labeled_path": str(rows)},
        "models": {"student": str(student)},
        "training": {**TRAINING, "per_device_train_batch_size": batch, "bf16": False, **training},
        "evaluation": {"heldout": 4},
        "launch": {"processes": processes},
        **changes,
    }


def logged(folder: Path, stage: str) -> list[dict[str, float]]:
    """What was logged of a kind, without times."""
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ("time", "seconds_per_step", "stage")}
        for line in lines
        if line["stage"] == stage
    ]


def assert_same_course(ours: Path, one: Path, *stages: str) -> None:
    """Every figure of every step is the same within 1e-4, and so are the saved weights."""
    for stage in stages:
        mine, other = logged(ours, stage), logged(one, stage)
        assert len(mine) == len(other) > 0
        assert stage != "train" or all(line["grad_norm"] > 1e-3 for line in other), "something is learned"
        for found, wanted in zip(mine, other, strict=True):
            assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert_same_weights(ours, one)


def assert_same_weights(ours: Path, one: Path, within: float = 1e-4) -> None:
    mine, other = (load_file(folder / "run/student/model.safetensors") for folder in (ours, one))
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        assert torch.allclose(value, other[name], rtol=within, atol=within), name


def both(tmp_path: Path, student: Path, **changes: Any) -> tuple[Path, Path]:
    """The folders of a run in two processes, and of one with the same batches in one."""
    folders = tmp_path / "two", tmp_path / "one"
    for folder, processes, batch in zip(folders, (2, 1), (2, 4), strict=True):
        folder.mkdir()
        code, out = run_here(write_config(folder, pairs_job(folder, student, processes, batch, **changes)))
        assert code == 0, out
        assert ("2 processes" in out) == (processes == 2)
    return folders


def test_two_processes_learn_from_pairs_what_one_learns(tiny_model: Path, tmp_path: Path) -> None:
    two, one = both(tmp_path, tiny_model)
    assert_same_course(two, one, "train", "preferences")
    assert heldout(two) == pytest.approx(heldout(one), rel=1e-3, abs=1e-4)


def heldout(folder: Path) -> dict[str, float]:
    (manifest,) = (folder / "run/stages").glob("*train*/manifest.json")
    after = json.loads(manifest.read_text())["metrics"]["after"]
    return {name: value for name, value in after.items() if value is not None}


@pytest.mark.slow
def test_two_processes_learn_to_score_what_one_learns(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{**row, "margin": 0.1 * (number % 4)} for number, row in enumerate(PAIRS)]
    scoring = {"use_margin": True, "center_rewards_coefficient": 0.01}
    two, one = both(tmp_path, tiny_model, rows=rows, job_type="reward_model", reward_model=scoring)
    assert_same_course(two, one, "train", "reward_model")
    assert heldout(two) == pytest.approx(heldout(one), rel=1e-3, abs=1e-4)


PAIR_VARIANTS: dict[str, dict[str, Any]] = {
    "cogpo": {"job_type": "cogpo"},
    "lora": {"training": {"lora": {"r": 4}}},
    "several losses": {"preference": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}},
    "weighting": {"preference": {"weighting": True}},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", PAIR_VARIANTS)
def test_variants_learn_in_two_processes_what_they_learn_in_one(variant: str, tiny_model: Path, tmp_path: Path) -> None:
    two, one = both(tmp_path, tiny_model, **PAIR_VARIANTS[variant])
    assert_same_course(two, one, "train", "preferences")


LONG = {"training": {"num_train_epochs": 4}}


@pytest.fixture(scope="module")
def in_two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run in two processes, long enough to be interrupted."""
    folder = tmp_path_factory.mktemp("pairs-in-two")
    code, out = run_here(write_config(folder, pairs_job(folder, tiny_model, 2, 2, **LONG)))
    assert code == 0, out
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_run_and_it_resumes(victim: int, in_two: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, pairs_job(tmp_path, tiny_model, 2, 2, **LONG))
    run = start(config)
    ranks = wait_for_step(run, tmp_path, 4)
    os.kill(ranks[victim], signal.SIGKILL)
    err, _ = run.communicate(timeout=60)
    assert run.returncode == 1
    assert f"process {victim} of the stage was killed by SIGKILL" in err
    assert_all_gone(ranks)
    code, out = run_here(config, "--set", "launch.processes=1")
    assert code == 2, "the checkpoint is kept for as many processes as wrote it"
    assert "set launch.processes=2" in out
    assert run_here(config)[0] == 0
    assert weights(tmp_path) == weights(in_two)


@pytest.mark.slow
def test_a_rank_killed_over_the_reference_resumes(in_two: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, pairs_job(tmp_path, tiny_model, 2, 2, **LONG))
    run = start(config)
    ends = time.monotonic() + 120
    while time.monotonic() < ends and not any(
        path.stat().st_size for path in (tmp_path / "run").rglob("reference.jsonl")
    ):
        time.sleep(0.01)
    ranks = ranks_of(run)
    os.kill(ranks[1], signal.SIGKILL)
    run.communicate(timeout=60)
    assert_all_gone(ranks)
    assert run_here(config)[0] == 0
    assert weights(tmp_path) == weights(in_two)


@pytest.mark.parametrize(
    ("preference", "told"),
    [
        ({"loss_type": "aot"}, "sorts the answers of a whole batch"),
        ({"loss_type": ["sigmoid", "sft"], "weighting": True}, "multiplies the `sft` loss"),
    ],
)
def test_losses_that_ranks_cannot_add_up_are_refused(
    preference: dict[str, Any], told: str, tiny_model: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, pairs_job(tmp_path, tiny_model, 2, 2, preference=preference))
    code, out = run_here(config)
    assert code == 2
    assert told in out
    assert "set launch.processes to 1" in out


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp2"])
@pytest.mark.parametrize("job_type", ["dpo", "reward_model"])
def test_a_shared_model_learns_what_a_whole_one_learns(
    job_type: str, strategy: str, tiny_model: Path, tmp_path: Path
) -> None:
    folders = tmp_path / "two", tmp_path / "one"
    for folder, launch, batch in zip(folders, ({"processes": 2, "strategy": strategy}, None), (2, 4), strict=True):
        folder.mkdir()
        job = pairs_job(folder, tiny_model, 2, batch, job_type=job_type, launch=launch)
        code, out = run_here(write_config(folder, job))
        assert code == 0, out
    assert_same_course(*folders, "train", "preferences" if job_type == "dpo" else "reward_model")
