"""This process among those that train together (its ranks); alone, everything here is trivial.

What ranks tell each other here goes through a group of its own that does not time out: one rank may measure, or wait
for a judge, for longer than a collective of the training may take. A rank that has died ends the others at once.
"""

from __future__ import annotations

import datetime
import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from easydistill.engine.interrupt import StopSignal
from easydistill.errors import ConfigError, ConfigIssue, Interrupted, TeacherError
from easydistill.methods.shared.checkpoints import WHOLE_COPIES, ranks_of, strategy_of
from easydistill.methods.shared.strategies.base import strategy
from easydistill.models.loading import device

T = TypeVar("T")


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def numbers_of_share(count: int) -> range:
    """The numbers of this rank's items among all ranks', of which each has as many."""
    return range(rank() * count, (rank() + 1) * count)


@functools.cache
def _patient() -> Any:
    """All ranks, in a group whose collectives wait as long as it takes."""
    return dist.new_group(backend="gloo", timeout=datetime.timedelta(days=365))


def check_ranks(checkpoint: Path) -> None:
    """Check that processes go on as they wrote a checkpoint: as many, since each has its own random state and a step's
    rows, and with the model shared in the same way.

    Raises:
        ConfigError: they are more or fewer, or share it otherwise.
    """
    wrote, now = ranks_of(checkpoint), world_size()
    if wrote != now:
        problem = f"training goes on from {checkpoint}, which {wrote} processes wrote, but there are {now} now"
        as_many = f"set launch.processes={wrote}"
        if int(os.environ.get("LOCAL_WORLD_SIZE", now)) < now:
            as_many = f"start {wrote} processes on all nodes together"
        hint = f"{as_many}, or remove {checkpoint.parent} to train from the beginning"
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
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_patient())
    return bool(found)


def raise_if_stopped(stop: StopSignal) -> None:
    """On all ranks, raise `Interrupted` if any of them was asked to stop."""
    if any_rank(stop.requested):
        stop.request()
    stop.raise_if_requested()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of all ranks' tensors, on all."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Give every parameter the sum of its gradients over the ranks, for losses that are parts of one sum.

    One that has no gradient on any rank gets none, not zeros: for those an optimiser would still decay weights.
    """
    if world_size() == 1:
        return
    values = list(parameters)
    learned = torch.tensor([value.grad is not None for value in values], dtype=torch.uint8)
    dist.all_reduce(learned, dist.ReduceOp.MAX, group=_patient())
    for value, any_learned in zip(values, learned.tolist(), strict=True):
        if not any_learned:
            continue
        if value.grad is None:
            value.grad = torch.zeros_like(value)
        dist.all_reduce(value.grad)


def gather_rows(rows: Tensor) -> Tensor:
    """All ranks' rows, one rank's after another's, on all; each may have another number of them."""
    if world_size() == 1:
        return rows
    counts = sum_over_ranks(torch.eye(world_size(), dtype=torch.int64)[rank()] * len(rows)).tolist()
    mine = rows.new_zeros(max(counts), *rows.shape[1:])
    mine[: len(rows)] = rows
    parts = [torch.empty_like(mine) for _ in counts]
    dist.all_gather(parts, mine)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def from_first(value: Any) -> Any:
    """The first rank's value, on all; it must survive pickling."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_patient())
    return box[0]


def from_all(value: Any) -> list[Any]:
    """All ranks' values, on all; they must survive pickling."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value, group=_patient())
    return found


def together(work: Callable[[], T]) -> list[T]:
    """What each rank's work returns, on all ranks; one's interruption or failing teacher is raised by all alike.

    So all of them can still save what they have done together.

    Raises:
        Interrupted, TeacherError: a rank's work raised it.
    """
    if world_size() == 1:
        return [work()]
    found: T | None = None
    failed: Exception | None = None
    try:
        found = work()
    except (Interrupted, TeacherError) as error:
        failed = error
    outcomes: list[tuple[Any, Exception | None]] = from_all((found, failed))
    for _, failure in outcomes:
        if failure is not None:
            raise failure
    return [found for found, _ in outcomes]


def whole_student_device(say: Callable[[str], object]) -> torch.device:
    """Where the first rank computes with a whole student before and after the training; told if that is slow."""
    on = device()
    if not strategy().shards or on.type == "cpu":
        return on
    say("  note: held-out rows are scored on the CPU, which is slow: a GPU need not have room for the whole student")
    return torch.device("cpu")


def wait_for_all() -> None:
    """Return when all ranks have come here."""
    any_rank(False)
