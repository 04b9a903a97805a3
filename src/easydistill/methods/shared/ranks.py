"""This process among those that train together (its ranks); alone, everything here is trivial."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist

from easydistill.errors import ConfigError, ConfigIssue
from easydistill.methods.shared.checkpoints import ranks_of


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def check_ranks(checkpoint: Path) -> None:
    """Check that as many processes go on as wrote a checkpoint: each has its own random state, and a step's rows.

    Raises:
        ConfigError: they are more, or fewer.
    """
    wrote, now = ranks_of(checkpoint), world_size()
    if wrote != now:
        problem = f"training goes on from {checkpoint}, which {wrote} processes wrote, but there are {now} now"
        as_many = f"set launch.processes={wrote}"
        if int(os.environ.get("LOCAL_WORLD_SIZE", now)) < now:
            as_many = f"start {wrote} processes on all nodes together"
        hint = f"{as_many}, or remove {checkpoint.parent} to train from the beginning"
        raise ConfigError(ConfigIssue("config", "launch.processes", problem, hint))


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank: the same answer on all, who must all ask."""
    if world_size() == 1:
        return flag
    found = torch.tensor(int(flag))
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of all ranks' tensors, on all."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def wait_for_all() -> None:
    """Return when all ranks have come here."""
    any_rank(False)
