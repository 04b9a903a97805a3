"""The processes of a stage: their variables, and whose error is told."""

from __future__ import annotations

import os
from typing import Any

import pytest

from easydistill.errors import DataError, Interrupted
from easydistill.launch.failures import Failures, RankLost, follows_another
from easydistill.launch.messages import LostError
from easydistill.launch.place import ALONE, Place
from easydistill.launch.processes import Share, rank_environment
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
