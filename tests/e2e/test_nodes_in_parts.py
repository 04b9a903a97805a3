"""Training with the model in parts on several nodes, here commands of one machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_launch import weights
from tests.e2e.test_nodes import LONG, assert_resumes, ended, job_of, start_nodes, wait_for_step
from tests.support.jobs import run_here, write_config
from tests.support.several import Commands, on_nodes

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow

STRATEGIES = ["zero2", "zero3", "fsdp2"]


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    started = Commands(tmp_path)
    yield started
    started.end()


def shared(folder: Path, student: Path, strategy: str) -> dict[str, Any]:
    return on_nodes(job_of(folder, student, LONG), 2, strategy=strategy)


@pytest.fixture(scope="module", params=STRATEGIES)
def in_two(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A strategy, and an uninterrupted run under it in two processes of one machine."""
    folder = tmp_path_factory.mktemp("in-two")
    job = job_of(folder, tiny_model, LONG)
    job["launch"]["strategy"] = request.param
    code, out = run_here(write_config(folder, job))
    assert code == 0, out
    return request.param, folder


def test_two_nodes_learn_what_two_processes_learn(
    in_two: tuple[str, Path], tiny_model: Path, tmp_path: Path, commands: Commands
) -> None:
    strategy, one_machine = in_two
    start_nodes(commands, write_config(tmp_path, shared(tmp_path, tiny_model, strategy)))
    assert commands.codes(300) == [0, 0], commands.all_said()
    assert f"2 processes on 2 nodes ({strategy})" in commands.said(0)
    assert weights(tmp_path) == weights(one_machine)


def test_after_a_killed_process_the_run_resumes(
    in_two: tuple[str, Path], tiny_model: Path, tmp_path: Path, commands: Commands
) -> None:
    strategy, one_machine = in_two
    config = write_config(tmp_path, shared(tmp_path, tiny_model, strategy))
    start_nodes(commands, config)
    ranks = wait_for_step(commands, tmp_path, 4)
    os.kill(ranks[1], signal.SIGKILL)
    assert ended(commands, ranks) == [1, 1]
    assert "process 1 of the stage was killed by SIGKILL" in commands.said(0)
    assert_resumes(config, commands, one_machine)
