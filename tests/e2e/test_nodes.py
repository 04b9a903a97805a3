"""Training on several nodes: commands that are started once on each, here all on one machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_launch import assert_all_gone, curve, ranks_of, sft_job, weights
from tests.support.jobs import run_here, write_config
from tests.support.several import Commands, on_nodes

LONG = 6
"""Epochs of a run that is to be interrupted."""


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    started = Commands(tmp_path)
    yield started
    started.end()


def job_of(folder: Path, student: Path, epochs: int = 2) -> dict[str, Any]:
    """A job that trains on written answers."""
    job = sft_job(folder, student, 2, 2, num_train_epochs=epochs)
    del job["distillation"]
    return {**job, "job_type": "black_box_kd_local", "models": {"student": str(student)}}


def start_nodes(commands: Commands, config: Path) -> list[subprocess.Popen[bytes]]:
    return [commands.start("run", str(config), "--node-rank", str(node)) for node in range(2)]


def wait_for_step(commands: Commands, folder: Path, step: int) -> list[int]:
    """Wait until the training has logged a step; the process of each node that trains."""
    ends = time.monotonic() + 200
    while not (folder / "run/metrics.jsonl").is_file() or len(curve(folder)) < step:
        assert time.monotonic() < ends and all(one.poll() is None for one in commands.processes), commands.all_said()
        time.sleep(0.05)
    return [ranks_of(one)[0] for one in commands.processes[-2:]]


@pytest.fixture(scope="module")
def in_two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run in two processes of one machine."""
    folder = tmp_path_factory.mktemp("in-two")
    code, out = run_here(write_config(folder, job_of(folder, tiny_model, LONG)))
    assert code == 0, out
    return folder


def start_long(tiny_model: Path, tmp_path: Path, commands: Commands) -> tuple[Path, list[int]]:
    """Start a run on two nodes; its config, and the processes that train."""
    config = write_config(tmp_path, on_nodes(job_of(tmp_path, tiny_model, LONG), 2))
    start_nodes(commands, config)
    return config, wait_for_step(commands, tmp_path, 4)


def ended(commands: Commands, ranks: list[int]) -> list[int]:
    """The exit codes of two commands that end within 30 seconds, and leave nothing behind."""
    codes = commands.codes(30)
    assert_all_gone(ranks, 10)
    return codes


def assert_resumes(config: Path, commands: Commands, in_two: Path) -> None:
    again = Commands(commands.folder / "again")
    again.folder.mkdir()
    start_nodes(again, config)
    assert again.codes(200) == [0, 0], again.all_said()
    assert weights(config.parent) == weights(in_two)
    lines = (config.parent / "run/metrics.jsonl").read_text().splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if line["stage"] == "train"]
    assert steps.count(1) == 1, "it went on from a checkpoint"


def test_a_killed_node_ends_the_others(tiny_model: Path, tmp_path: Path, commands: Commands) -> None:
    _, ranks = start_long(tiny_model, tmp_path, commands)
    commands.processes[1].kill()
    assert ended(commands, ranks) == [1, -signal.SIGKILL]
    assert "node 1" in commands.said(0) and "is gone" in commands.said(0)
    assert "start the same commands again" in commands.said(0)


@pytest.mark.slow
def test_two_nodes_learn_what_two_processes_learn(
    in_two: Path, tiny_model: Path, tmp_path: Path, commands: Commands
) -> None:
    config = write_config(tmp_path, on_nodes(job_of(tmp_path, tiny_model, LONG), 2))
    start_nodes(commands, config)
    assert commands.codes(200) == [0, 0], commands.all_said()
    assert weights(tmp_path) == weights(in_two)
    assert "2 processes on 2 nodes (ddp)" in commands.said(0)
    assert not (tmp_path / "run/nodes.key").exists()
    # Everything is done, and both are told.
    again = Commands(tmp_path / "again")
    again.folder.mkdir()
    start_nodes(again, config)
    assert again.codes() == [0, 0], again.all_said()
    assert "everything is already done" in again.said(0)


@pytest.mark.slow
def test_after_a_killed_node_the_run_resumes(
    in_two: Path, tiny_model: Path, tmp_path: Path, commands: Commands
) -> None:
    config, ranks = start_long(tiny_model, tmp_path, commands)
    commands.processes[1].kill()
    ended(commands, ranks)
    assert_resumes(config, commands, in_two)


@pytest.mark.slow
def test_a_killed_first_node(in_two: Path, tiny_model: Path, tmp_path: Path, commands: Commands) -> None:
    config, ranks = start_long(tiny_model, tmp_path, commands)
    commands.processes[0].kill()
    assert ended(commands, ranks) == [-signal.SIGKILL, 1]
    assert "node 0 is gone" in commands.said(1)
    assert_resumes(config, commands, in_two)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_of_any_node(
    victim: int, in_two: Path, tiny_model: Path, tmp_path: Path, commands: Commands
) -> None:
    config, ranks = start_long(tiny_model, tmp_path, commands)
    os.kill(ranks[victim], signal.SIGKILL)
    assert ended(commands, ranks) == [1, 1]
    told = f"process {victim} of the stage was killed by SIGKILL"
    assert told in commands.said(0) and told in commands.said(1)
    assert_resumes(config, commands, in_two)


@pytest.mark.slow
@pytest.mark.parametrize("node", [0, 1])
def test_ctrl_c_on_any_node_stops_all_after_a_checkpoint(
    node: int, in_two: Path, tiny_model: Path, tmp_path: Path, commands: Commands
) -> None:
    config, ranks = start_long(tiny_model, tmp_path, commands)
    commands.processes[node].send_signal(signal.SIGINT)
    assert ended(commands, ranks) == [130, 130]
    assert "stopped; finished work is kept" in commands.said(0)
    assert "--node-rank 0" in commands.said(0)
    steps = len(curve(tmp_path))
    assert_resumes(config, commands, in_two)
    # Nothing was done twice.
    assert steps < len(curve(tmp_path)) == len(curve(in_two))


@pytest.mark.slow
def test_an_error_of_a_rank_is_the_run_s_error(tiny_model: Path, tmp_path: Path, commands: Commands) -> None:
    job = job_of(tmp_path, tiny_model)
    job["training"]["learning_rate"] = 1e30
    start_nodes(commands, write_config(tmp_path, on_nodes(job, 2)))
    assert commands.codes() == [1, 1]
    for node in range(2):
        assert "lower training.learning_rate" in commands.said(node)


@pytest.mark.slow
def test_node_1_comes_later(tiny_model: Path, tmp_path: Path, commands: Commands) -> None:
    config = write_config(tmp_path, on_nodes(job_of(tmp_path, tiny_model), 2))
    commands.start("run", str(config), "--node-rank", "0")
    ends = time.monotonic() + 100
    while "waiting for node 1" not in commands.said(0):
        assert time.monotonic() < ends, commands.all_said()
        time.sleep(0.1)
    commands.start("run", str(config), "--node-rank", "1")
    assert commands.codes(200) == [0, 0], commands.all_said()


@pytest.mark.slow
def test_the_jobs_of_a_pipeline_train_one_after_another(tiny_model: Path, tmp_path: Path, commands: Commands) -> None:
    first = on_nodes(job_of(tmp_path, tiny_model), 2)
    second = {**first, "models": {"student": "@one/student"}}
    jobs = {name: {**job} for name, job in (("one", first), ("two", second))}
    output = jobs["one"].pop("output_dir")
    del jobs["two"]["output_dir"]
    start_nodes(commands, write_config(tmp_path, {"job_type": "pipeline", "output_dir": output, "jobs": jobs}))
    assert commands.codes(300) == [0, 0], commands.all_said()
    assert commands.said(0).count("2 processes on 2 nodes (ddp)") == 2
    assert (tmp_path / "run/student/model.safetensors").is_file()
