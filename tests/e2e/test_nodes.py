"""Training on several nodes: commands that are started once on each, here all on one machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.test_launch import sft_job, weights
from tests.support.jobs import run_here, write_config
from tests.support.several import Commands, on_nodes


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    started = Commands(tmp_path)
    yield started
    started.end()


def start_nodes(commands: Commands, config: Path, nodes: int = 2) -> None:
    for node in range(nodes):
        commands.start("run", str(config), "--node-rank", str(node))


@pytest.fixture(scope="module")
def in_two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in two processes of one machine."""
    folder = tmp_path_factory.mktemp("in-two")
    code, out = run_here(write_config(folder, sft_job(folder, tiny_model, 2, 2)))
    assert code == 0, out
    return folder


def test_two_nodes_learn_what_two_processes_learn(
    in_two: Path, tiny_model: Path, tmp_path: Path, commands: Commands
) -> None:
    config = write_config(tmp_path, on_nodes(sft_job(tmp_path, tiny_model, 2, 2), 2))
    start_nodes(commands, config)
    assert commands.codes() == [0, 0], commands.all_said()
    assert weights(tmp_path) == weights(in_two)
    assert "2 processes on 2 nodes (ddp)" in commands.said(0)
    assert not (tmp_path / "run/nodes.key").exists()
