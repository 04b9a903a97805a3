"""The processes of a stage: their variables, and whose error is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from easydistill.errors import DataError, Interrupted
from easydistill.launch.failures import Failures, FollowingError, RankLost, follows_another
from easydistill.launch.messages import LostError
from easydistill.launch.place import ALONE, Place
from easydistill.launch.processes import Share, _start, free_port, rank_environment
from easydistill.launch.stages import launched


def test_variables_of_a_share() -> None:
    # The second of three machines, each with four processes.
    share = Share(4, first=4, world=12, address="10.0.0.1", port=1234)
    assert rank_environment(share, 2) == {
        "RANK": "6", "LOCAL_RANK": "2", "WORLD_SIZE": "12", "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234",
    }  # fmt: skip
    # A launcher's process: the third of a machine.
    alone = Share(1, first=6, world=8, first_here=2, here=4, port=1)
    told = rank_environment(alone, 0)
    assert (told["RANK"], told["LOCAL_RANK"], told["LOCAL_WORLD_SIZE"]) == ("6", "2", "4")


GONE = RuntimeError("[../gloo/transport/tcp/pair.cc:544] Connection closed by peer [127.0.0.1]:20131")


@pytest.mark.parametrize(
    ("error", "follows"),
    [
        (GONE, True),
        (LostError("DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1"), True),
        (RankLost("process 1 of the stage was killed by SIGABRT"), True),
        (RankLost("process 1 of the stage was killed by SIGKILL\n    gloo"), False),
        (FollowingError("node 1: process 3 of the stage was killed by SIGABRT"), True),
        (DataError("the training loss is nan"), False),
        (RuntimeError("CUDA out of memory"), False),
        (ValueError("gloo"), False),
    ],
)
def test_which_errors_follow_from_others(error: Exception, follows: bool) -> None:
    assert follows_another(error) is follows


def test_the_reason_is_told_though_it_is_heard_later() -> None:
    failures = Failures()
    failures.add(GONE)
    failures.raise_if_due()
    reason = RankLost("process 1 of the stage was killed by SIGKILL")
    with pytest.raises(RankLost) as raised:
        failures.add(reason)
    assert raised.value is reason


def test_without_a_reason_the_first_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("easydistill.launch.failures.SETTLE", 0.0)
    failures = Failures()
    failures.add(None)
    failures.raise_if_any()
    failures.add(GONE)
    failures.add(RuntimeError("gloo again"))
    with pytest.raises(RuntimeError) as raised:
        failures.raise_if_due()
    assert raised.value is GONE


def test_who_stops_as_asked_lets_the_others_finish() -> None:
    failures = Failures()
    failures.add(Interrupted("stopped"))
    failures.raise_if_due()
    with pytest.raises(Interrupted):
        failures.raise_if_any()


def test_a_launcher_s_variables_are_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, Any] = {
        "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "ACCELERATE_MIXED_PRECISION": "bf16", "CUDA_VISIBLE_DEVICES": "1",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with launched(Place(0, 2, "torchrun")):
        assert [name for name in values if name in os.environ] == ["CUDA_VISIBLE_DEVICES"]
    assert {name: os.environ[name] for name in values} == values
    with launched(ALONE):
        assert os.environ["RANK"] == "0"


def test_a_rank_that_hears_sigterm_as_it_starts_lives_on(tmp_path: Path) -> None:
    rank = _start(Share(1, first=1, world=2, port=free_port()), 0, tmp_path)
    rank.process.send_signal(signal.SIGTERM)
    # Nobody has work for it, which ends it with an error.
    rank.to.close()
    assert rank.process.wait(60) == 1
    rank.back.close()


def test_a_worker_of_the_pool_outlives_sigterm() -> None:
    receiving, sending = os.pipe()
    command = [sys.executable, "-m", "easydistill.teachers.pool.process", str(sending)]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[sending])
    assert worker.stdin is not None
    ends = time.monotonic() + 60
    while not _catches(worker.pid, signal.SIGTERM):
        assert worker.poll() is None and time.monotonic() < ends
        time.sleep(0.05)
    worker.send_signal(signal.SIGTERM)
    worker.stdin.close()
    assert worker.wait(60) == 0
    for end in (receiving, sending):
        os.close(end)


def _catches(process: int, number: int) -> bool:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    caught = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)
