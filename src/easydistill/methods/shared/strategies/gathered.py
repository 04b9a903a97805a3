"""All weights of a model that processes hold in parts, in an ordinary module, for as long as they are computed with.

The student writes its answers so: a process takes as many passes as its own answers need, which no exchange between
layers allows, and weights are gathered once for all answers of a round instead of once for each token. Held meanwhile:
a whole copy, of which linear layers have the number type that they are computed in.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_ALTERS = (
    "forward",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)
"""Attributes of a module that change what it computes; trainers set them."""


class Gathered:
    """The modules of a model, which hold weights inside `whole` alone.

    Args:
        model: as it is before it is sharded; its buffers are read whenever weights are gathered.
        values: the whole value of each parameter in turn, on this process's device. All processes ask at once.
        around: a context for what is computed with them.
    """

    def __init__(
        self,
        model: nn.Module,
        values: Callable[[], Iterable[Tensor]],
        around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._model, self._values, self._around = model, values, around
        self.structure = structure_of(model)
        self._empty = list(self.structure.parameters())
        self._places = [
            (module, name, parameter)
            for module in self.structure.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]

    @contextlib.contextmanager
    def whole(self, *, first_only: bool = False) -> Iterator[Any]:
        """The model with all its weights as they are now. All processes enter, at the same time.

        Args:
            first_only: the first process alone holds them.
        """
        keeps = not first_only or dist.get_rank() == 0
        found: dict[nn.Parameter, nn.Parameter] = {}
        for empty, value in zip(self._empty, self._values(), strict=True):
            if keeps:
                found[empty] = nn.Parameter(value, requires_grad=False)
            # Before the next one is gathered.
            del value
        if keeps:
            self._put(found)
            self._share_buffers()
        del found
        try:
            with self._around():
                yield self.structure
        finally:
            self._put({})

    def _put(self, values: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """Give modules the values, or none."""
        for module, name, empty in self._places:
            module._parameters[name] = values.get(empty, empty)

    def _share_buffers(self) -> None:
        for ours, theirs in zip(self.structure.modules(), self._model.modules(), strict=True):
            ours._buffers.update(theirs._buffers)


def structure_of(model: nn.Module) -> nn.Module:
    """The modules of `model`, in evaluation mode, without weights and without what a trainer has changed of them."""
    memo: dict[int, Any] = {
        id(value): nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
        for value in model.parameters()
    }
    memo |= {id(value): torch.empty_like(value, device="meta") for value in model.buffers()}
    taken = [
        (module, {name: module.__dict__[name] for name in _ALTERS if name in module.__dict__})
        for module in model.modules()
    ]
    for module, altered in taken:
        for name, value in altered.items():
            if name == "forward":
                del module.__dict__[name]
            else:
                module.__dict__[name] = type(value)()
    try:
        found = copy.deepcopy(model, memo)
    finally:
        for module, altered in taken:
            module.__dict__.update(altered)
    return found.eval()


def number_types(model: nn.Module, computed: torch.dtype | None) -> list[torch.dtype]:
    """The number type in which each parameter is computed with.

    The first process alone knows those of a student that it loads for all.

    Args:
        computed: that of linear layers under autocast, which would convert their weights for every token; None without.
    """
    linear: set[nn.Parameter] = set()
    others: set[nn.Parameter] = set()
    for module in model.modules():
        (linear if isinstance(module, nn.Linear) else others).update(module.parameters(recurse=False))
    narrow = linear - others
    return [
        computed if computed is not None and value in narrow and value.is_floating_point() else value.dtype
        for value in model.parameters()
    ]


class KeptInParts:
    """The values of a model that is not trained, of which each process holds a part.

    Args:
        model: whole in the first process; the others need its structure alone.
        dtypes: in which number types they are kept, the same in all processes.
        device: where this process computes.
        home: where its part is kept.
    """

    def __init__(
        self, model: nn.Module, dtypes: Sequence[torch.dtype], device: torch.device, home: torch.device
    ) -> None:
        self._device = device
        self._parts: list[tuple[Tensor, torch.Size]] = []
        for value, dtype in zip(model.parameters(), dtypes, strict=True):
            # One weight at a time: a device need not have room for all.
            self._parts.append((_scattered(value.detach(), dtype, device).to(home), value.shape))

    def values(self) -> Iterator[Tensor]:
        """The whole value of each parameter, on this process's device."""
        for part, shape in self._parts:
            mine = part.to(self._device)
            parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
            dist.all_gather([one.view(torch.uint8) for one in parts], mine.view(torch.uint8))
            yield torch.cat(parts)[: shape.numel()].view(shape)


def _scattered(value: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """This process's part of the first one's value, flattened, each part of the same size."""
    ranks = dist.get_world_size()
    each = -(-value.numel() // ranks)
    mine = torch.empty(each, dtype=dtype, device=device)
    parts = None
    if dist.get_rank() == 0:
        filled = torch.zeros(each * ranks, dtype=dtype, device=device)
        filled[: value.numel()] = value.to(device, dtype).flatten()
        # Bytes, which every backend sends.
        parts = [part.view(torch.uint8) for part in filled.chunk(ranks)]
    dist.scatter(mine.view(torch.uint8), parts, 0)
    return mine
