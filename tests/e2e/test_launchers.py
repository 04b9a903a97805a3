"""Started by launchers: the real ones, and processes with the variables that srun and PAI-DLC set."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_launch import curve, sft_job, weights
from tests.support.jobs import run_here, write_config
from tests.support.several import Commands, free_port, script


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    started = Commands(tmp_path)
    yield started
    started.end()


@pytest.fixture(scope="module")
def in_two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in two processes, without a launcher."""
    folder = tmp_path_factory.mktemp("in-two")
    code, out = run_here(write_config(folder, short_job(folder, tiny_model, processes=2)))
    assert code == 0, out
    return folder


def short_job(folder: Path, student: Path, **launch: Any) -> dict[str, Any]:
    """A job that trains on written answers; without a `launch` section unless one is asked for."""
    job = sft_job(folder, student, 2, 2)
    job |= {"job_type": "black_box_kd_local", "models": {"student": str(student)}, "launch": launch}
    del job["distillation"]
    if not launch:
        del job["launch"]
    return job


def torchrun(*arguments: str) -> list[str]:
    return [script("torchrun"), "--nproc_per_node", "2", "--master_port", str(free_port()), *arguments]


def test_torchrun(in_two: Path, tiny_model: Path, tmp_path: Path, commands: Commands) -> None:
    config = write_config(tmp_path, short_job(tmp_path, tiny_model))
    commands.start(*torchrun("-m", "easydistill", f"-config={config}"))
    assert commands.codes() == [0], commands.all_said()
    assert weights(tmp_path) == weights(in_two)
    # One of the two speaks.
    assert commands.said(0).count("report:") == 1


@pytest.mark.slow
def test_accelerate_launch(in_two: Path, tiny_model: Path, tmp_path: Path, commands: Commands) -> None:
    config = write_config(tmp_path, short_job(tmp_path, tiny_model))
    accelerate = [script("accelerate"), "launch", "--multi_gpu", "--num_processes", "2"]
    accelerate += ["--main_process_port", str(free_port()), "--mixed_precision", "no"]
    commands.start(*accelerate, "-m", "easydistill", f"-config={config}")
    assert commands.codes() == [0], commands.all_said()
    assert weights(tmp_path) == weights(in_two)


@pytest.mark.slow
def test_the_launcher_of_deepspeed(in_two: Path, tiny_model: Path, tmp_path: Path, commands: Commands) -> None:
    config = write_config(tmp_path, short_job(tmp_path, tiny_model))
    launcher = [script("deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    commands.start(*launcher, "--module", "easydistill", f"-config={config}")
    assert commands.codes() == [0], commands.all_said()
    assert weights(tmp_path) == weights(in_two)


def srun(task: int, tasks: int, nodes: int) -> dict[str, str]:
    """What srun sets for one of the tasks of a step that runs on this machine."""
    on_each = tasks // nodes
    values = {
        "SLURM_JOB_ID": 4711, "SLURM_STEP_ID": 0, "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": nodes,
        "SLURM_STEP_NUM_TASKS": tasks, "SLURM_NTASKS": tasks, "SLURM_STEP_TASKS_PER_NODE": f"{on_each}(x{nodes})",
        "SLURM_PROCID": task, "SLURM_LOCALID": task % on_each, "SLURM_NODEID": task // on_each,
    }  # fmt: skip
    return {name: str(value) for name, value in values.items()}


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_srun(nodes: int, in_two: Path, tiny_model: Path, tmp_path: Path, commands: Commands) -> None:
    # A task for each process of one node, or one for each of two nodes.
    config = write_config(tmp_path, short_job(tmp_path, tiny_model))
    for task in range(2):
        commands.start("run", str(config), **srun(task, 2, nodes))
    assert commands.codes() == [0, 0], commands.all_said()
    assert weights(tmp_path) == weights(in_two)


@pytest.mark.slow
def test_pai_dlc(tiny_model: Path, tmp_path: Path, commands: Commands) -> None:
    # RANK and WORLD_SIZE count nodes there.
    together = tmp_path / "four"
    together.mkdir()
    assert run_here(write_config(together, short_job(together, tiny_model, processes=4)))[0] == 0
    config = write_config(tmp_path, short_job(tmp_path, tiny_model))
    dlc = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "NPROC_PER_NODE": "2"}
    for node in range(2):
        commands.start("run", str(config), **dlc, RANK=str(node))
    assert commands.codes(300) == [0, 0], commands.all_said()
    assert "4 processes on 2 nodes" in commands.said(0)
    assert weights(tmp_path) == weights(together)


def test_an_error_in_the_config_is_told_once_and_at_once(tiny_model: Path, tmp_path: Path, commands: Commands) -> None:
    config = write_config(tmp_path, short_job(tmp_path, tiny_model, processes=3))
    for task in range(2):
        commands.start("run", str(config), **srun(task, 2, 1))
    assert commands.codes(60) == [2, 2]
    told = "launch.processes: it is 3, but srun (SLURM_STEP_NUM_TASKS=2) says 2"
    assert told in commands.said(0) and commands.said(1) == "error: 1 problem in the config\n"


@pytest.mark.slow
def test_what_fails_before_the_training_ends_all(tiny_model: Path, tmp_path: Path, commands: Commands) -> None:
    job = short_job(tmp_path, tiny_model)
    job["models"]["student"] = str(tmp_path / "nowhere")
    config = write_config(tmp_path, job)
    for task in range(2):
        commands.start("run", str(config), **srun(task, 2, 2))
    assert commands.codes(60) == [2, 2]
    assert "nowhere" in commands.said(0)
    assert "node 0 has ended the run" in commands.said(1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_torchrun_that_is_stopped_resumes(
    number: signal.Signals, tiny_model: Path, tmp_path: Path, commands: Commands
) -> None:
    job = short_job(tmp_path, tiny_model)
    job["training"]["num_train_epochs"] = 6
    whole = tmp_path / "whole"
    whole.mkdir()
    assert run_here(write_config(whole, {**job, "output_dir": str(whole / "run"), "launch": {"processes": 2}}))[0] == 0
    config = write_config(tmp_path, job)
    started = commands.start(*torchrun("-m", "easydistill", f"-config={config}"))
    ends = time.monotonic() + 120
    while not (tmp_path / "run/metrics.jsonl").is_file() or len(curve(tmp_path)) < 4:
        assert time.monotonic() < ends, commands.all_said()
        time.sleep(0.05)
    started.send_signal(number)
    started.wait(60)
    assert "stopped; finished work is kept" in commands.said(0)
    assert any((tmp_path / "run/stages").rglob("whole.json"))
    steps = len(curve(tmp_path))
    commands.start(*torchrun("-m", "easydistill", f"-config={config}"))
    assert commands.codes()[1] == 0, commands.all_said()
    assert weights(tmp_path) == weights(whole)
    # It did not begin anew.
    assert len(curve(tmp_path)) == len(curve(whole)) > steps
