"""What processes that train together tell each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from easydistill.methods.shared import ranks
from easydistill.methods.shared.strategies.base import Strategy

USED = ((0, 1), (0,))
"""The parameters in each rank's part of the loss; nobody uses the third one."""


def step(*parts: int) -> list[Tensor]:
    """Three parameters after a step of AdamW on the sum of some parts of a loss, or on this rank's and the others'."""
    weights = [torch.nn.Parameter(torch.full((4,), 1.0 + number)) for number in range(3)]
    optimiser = torch.optim.AdamW(weights, lr=0.1, weight_decay=0.5)
    torch.stack([(weights[at] ** 2).sum() * (part + 1) for part in parts for at in USED[part]]).sum().backward()
    ranks.sum_gradients(weights)
    optimiser.step()
    return [weight.detach() for weight in weights]


def one_of_two(rank: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.save(step(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_make_the_step_of_one_and_leave_alone_what_has_no_gradient(tmp_path: Path) -> None:
    multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    alone = step(0, 1)
    assert torch.equal(alone[2], torch.full((4,), 3.0)), "not decayed"
    for rank in range(2):
        for ours, one in zip(torch.load(tmp_path / f"{rank}.pt"), alone, strict=True):
            torch.testing.assert_close(ours, one)


def test_the_whole_student_is_on_no_gpu_where_processes_hold_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(ranks, "device", lambda: torch.device("cuda"))
    assert ranks.whole_student_device(said.append).type == "cuda" and not said
    monkeypatch.setattr(Strategy, "shards", True)
    assert ranks.whole_student_device(said.append).type == "cpu" and len(said) == 1
    monkeypatch.setattr(ranks, "device", lambda: torch.device("cpu"))
    assert ranks.whole_student_device(said.append).type == "cpu" and len(said) == 1
