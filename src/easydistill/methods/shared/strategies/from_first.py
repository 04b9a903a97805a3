"""A student that the first process alone loads: the host's memory holds it once, however many processes there are.

The others have its structure, without values, until each is given its part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from easydistill.errors import ModelError
from easydistill.models.loading import without_weights

T = TypeVar("T")


def only_first_loads() -> AbstractContextManager[None]:
    """A context for making the student, in every process."""
    return contextlib.nullcontext() if dist.get_rank() == 0 else without_weights()


def decided_by_first(ask: Callable[[], T]) -> T:
    """What the first process finds out with the student's weights, in all of them."""
    found = [ask() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, 0)
    return cast(T, found[0])


def number_types_of_first(model: nn.Module) -> Iterator[torch.dtype]:
    """The number types of the first rank's parameters, in order: loading may keep some in float32.

    Raises:
        ModelError: they have other names or shapes than this rank's.
    """
    own = [(name, value.shape, value.dtype) for name, value in model.named_parameters()]
    told: list[Any] = [own]
    dist.broadcast_object_list(told, 0)
    if [parameter[:2] for parameter in own] != [parameter[:2] for parameter in told[0]]:
        raise ModelError(
            f"{type(model).__name__}: its structure is not the one that its config describes\n"
            "    → set launch.strategy=ddp, and please report this architecture"
        )
    return iter([dtype for _, _, dtype in told[0]])


def replace_parameters(model: nn.Module, made: Callable[[Tensor], Tensor]) -> None:
    """Replace each parameter by what is made of it; one that several modules share stays shared."""
    new: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is None:
                continue
            if old not in new:
                new[old] = nn.Parameter(made(old), requires_grad=old.requires_grad)
            module._parameters[name] = new[old]


def take_buffers_of_first(model: nn.Module, device: torch.device) -> None:
    """Give every process the first one's buffers, on its device."""
    first = dist.get_rank() == 0
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                sent = buffer.to(device).contiguous() if first else torch.empty_like(buffer, device=device)
                dist.broadcast(sent, 0)
                module._buffers[name] = sent
