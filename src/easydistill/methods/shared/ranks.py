"""This process among those that train together (its ranks); alone, everything here is trivial."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from easydistill.errors import ConfigError, ConfigIssue
from easydistill.methods.shared.checkpoints import WHOLE_COPIES, ranks_of, strategy_of
from easydistill.methods.shared.strategies.base import strategy


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def check_ranks(checkpoint: Path) -> None:
    """Check that processes go on as they wrote a checkpoint: as many, since each has its own random state and a step's
    rows, and with the model shared in the same way.

    Raises:
        ConfigError: they are more or fewer, or share it otherwise.
    """
    wrote, now = ranks_of(checkpoint), world_size()
    if wrote != now:
        problem = f"training goes on from {checkpoint}, which {wrote} processes wrote, but there are {now} now"
        hint = f"set launch.processes={wrote}, or remove {checkpoint.parent} to train from the beginning"
        raise ConfigError(ConfigIssue("config", "launch.processes", problem, hint))
    was, is_now = strategy_of(checkpoint), strategy().name
    if was != is_now:
        problem = f"training goes on from {checkpoint}, which was written under {was}, and is {is_now} now"
        back = f"set launch.strategy={was}" if was != WHOLE_COPIES else "set launch.strategy=ddp, or as it was,"
        hint = f"{back} or remove {checkpoint.parent} to train from the beginning"
        raise ConfigError(ConfigIssue("config", "launch.strategy", problem, hint))


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
