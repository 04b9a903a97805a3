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

from easydistill.data.files import hash_file

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
            # In bfloat16 the sum of two halves is another number than the whole, by more than what is asked here.
            "bf16": False,
            **training,
        },
        "evaluation": {"heldout": 0},
        "launch": {"processes": processes},
    }


def curve(folder: Path) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines if line["stage"] == "train"]


def weights(folder: Path) -> str:
    return hash_file(folder / "run/student/model.safetensors")


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
    # Whoever may read the config may load the student.
    student = tmp_path / "run/student"
    assert (student / "model.safetensors").stat().st_mode == (student / "config.json").stat().st_mode


def ranks_of(run: Any) -> list[int]:
    """Process ids of a run's ranks, in order."""
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    found = {}
    for child in map(int, children):
        try:
            told = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            command = Path(f"/proc/{child}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"easydistill.rank" in command:
            found[next(int(item[5:]) for item in told if item.startswith(b"RANK="))] = child
    return [found[rank] for rank in sorted(found)]


def wait_for_step(run: Any, folder: Path, step: int) -> list[int]:
    """Wait until training has logged a step; its ranks."""
    ends = time.monotonic() + 120
    while time.monotonic() < ends and run.poll() is None:
        if (folder / "run/metrics.jsonl").is_file() and len(curve(folder)) >= step:
            return ranks_of(run)
        time.sleep(0.05)
    raise AssertionError(run.communicate(timeout=30))


def gone(process: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def assert_all_gone(processes: list[int], seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and not all(map(gone, processes)):
        time.sleep(0.1)
    assert all(map(gone, processes))


@pytest.fixture(scope="module")
def in_two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run in two processes, long enough to be interrupted."""
    folder = tmp_path_factory.mktemp("in-two")
    code, out = run_here(write_config(folder, sft_job(folder, tiny_model, 2, 2, num_train_epochs=6)))
    assert code == 0, out
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_run_and_it_resumes(victim: int, in_two: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, sft_job(tmp_path, tiny_model, 2, 2, num_train_epochs=6))
    run = start(config)
    ranks = wait_for_step(run, tmp_path, 4)
    os.kill(ranks[victim], signal.SIGKILL)
    err, _ = run.communicate(timeout=30)
    assert run.returncode == 1
    assert f"process {victim} of the stage was killed by SIGKILL" in err
    assert "run the same command again" in err
    assert_all_gone(ranks)
    assert run_here(config)[0] == 0
    assert weights(tmp_path) == weights(in_two)


@pytest.mark.slow
def test_a_killed_parent_takes_its_ranks_along(in_two: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, sft_job(tmp_path, tiny_model, 2, 2, num_train_epochs=6))
    run = start(config)
    ranks = wait_for_step(run, tmp_path, 4)
    run.kill()
    run.communicate(timeout=30)
    assert_all_gone(ranks)
    assert run_here(config)[0] == 0
    assert weights(tmp_path) == weights(in_two)


@pytest.mark.slow
def test_ctrl_c_stops_all_after_a_checkpoint(in_two: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, sft_job(tmp_path, tiny_model, 2, 2, num_train_epochs=6))
    run = start(config)
    ranks = wait_for_step(run, tmp_path, 4)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode == 130
    assert_all_gone(ranks)
    assert run_here(config)[0] == 0
    assert weights(tmp_path) == weights(in_two)


@pytest.mark.slow
def test_sigterm_to_every_process_stops_all_after_a_checkpoint(in_two: Path, tiny_model: Path, tmp_path: Path) -> None:
    # As DeepSpeed's launcher, Slurm and systemd end what they have started.
    config = write_config(tmp_path, sft_job(tmp_path, tiny_model, 2, 2, num_train_epochs=6))
    run = start(config)
    ranks = wait_for_step(run, tmp_path, 4)
    for process in (*reversed(ranks), run.pid):
        os.kill(process, signal.SIGTERM)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 130, out
    assert "stopped; finished work is kept" in out
    assert_all_gone(ranks)
    steps = len(curve(tmp_path))
    assert run_here(config)[0] == 0
    assert weights(tmp_path) == weights(in_two)
    # It did not begin anew.
    assert len(curve(tmp_path)) == len(curve(in_two)) > steps


@pytest.mark.slow
def test_another_number_of_processes_does_not_go_on(tiny_model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, sft_job(tmp_path, tiny_model, 2, 2, num_train_epochs=6))
    run = start(config)
    wait_for_step(run, tmp_path, 4)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    code, out = run_here(config, "--set", "launch.processes=1")
    assert code == 2
    assert "2 processes wrote" in out and "set launch.processes=2" in out
    assert any((tmp_path / "run/stages").rglob("whole.json"))


def test_an_error_of_a_rank_is_the_run_s_error(tiny_model: Path, tmp_path: Path) -> None:
    job = sft_job(tmp_path, tiny_model, 2, 2, learning_rate=1e30)
    code, out = run_here(write_config(tmp_path, job))
    assert code == 1
    assert "the training loss is" in out or "the norm of the gradient is" in out
    assert "lower training.learning_rate" in out
