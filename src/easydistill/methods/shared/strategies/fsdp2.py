"""Fully sharded data parallelism (`torch.distributed.fsdp.fully_shard`): each process holds a part of every weight.

A layer's weights are gathered for its forward and its backward pass, and dropped after each. Embeddings, the last norm
and the output layer are one group with the model itself, gathered for the whole pass, because the fused loss reads the
output layer's weight outside that layer's own forward.

The same code runs with gloo on CPUs and NCCL on GPUs. transformers' Trainer knows nothing of it: its own FSDP, which is
accelerate's, trains whole copies on a CPU.

Numbers are those of whole copies: weights are gathered and gradients reduced as they are, and autocast computes in
bfloat16. (A `MixedPrecisionPolicy` would round norms and what flows between layers too.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable_state import _module_state_mapping
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from easydistill.errors import ModelError
from easydistill.methods.shared.compiling import decoder_layers
from easydistill.methods.shared.strategies.base import Strategy, T
from easydistill.methods.shared.strategies.from_first import (
    decided_by_first,
    number_types_of_first,
    only_first_loads,
    replace_parameters,
    take_buffers_of_first,
)
from easydistill.methods.shared.strategies.gathered import Gathered, KeptInParts, number_types
from easydistill.methods.shared.strategies.ordinary import OrdinaryModules
from easydistill.methods.shared.strategies.parts import PartCheckpoints
from easydistill.models.loading import device


class Fsdp2(Strategy):
    """Weights, gradients and optimiser state in parts; with `launch.offload`, in the CPU's memory between uses."""

    name = "fsdp2"
    shards = True
    compiles = False

    def loading(self) -> AbstractContextManager[None]:
        return only_first_loads()

    def decided(self, ask: Callable[[], T]) -> T:
        return decided_by_first(ask)

    def gathering(self, model: Any, computed: torch.dtype | None) -> Gathered:
        on, dtypes = device(), decided_by_first(lambda: number_types(model, computed))
        return Gathered(model, lambda: whole_values(model, on, dtypes))

    def kept_as_it_is(self, model: Any, computed: torch.dtype | None) -> Gathered:
        on = device()
        home = torch.device("cpu") if self.launch.offload else on
        parts = KeptInParts(model, decided_by_first(lambda: number_types(model, computed)), on, home)
        return Gathered(model, parts.values)

    def prepared(self, trainer: Any) -> None:
        self._device = trainer.args.device
        self._modules = OrdinaryModules(trainer.model)
        shard(trainer.model, self._device, offload=bool(self.launch.offload))
        check_sharded(trainer.model)
        trainer.place_model_on_device = False
        if trainer.args.optim == "adamw_torch_8bit":
            _mend_views_of_8bit_states()
        accelerator = trainer.accelerator
        # Copies in bfloat16 that are kept for the pass would hold all weights again.
        torch.set_autocast_cache_enabled(False)
        accelerator.prepare_model = functools.partial(_only_autocast, accelerator.prepare_model)
        accelerator.clip_grad_norm_ = clip_gradients
        PartCheckpoints(trainer).attach()

    def whole(self, trainer: Any, model: Any) -> None:
        torch.set_autocast_cache_enabled(True)
        gather(model, self._device)
        self._modules.restore()
        del self._modules
        for module in model.modules():
            # Else it could not be sharded again.
            _module_state_mapping.pop(module, None)
        # The buffers, which no rank holds in parts.
        model.to("cpu" if dist.get_rank() == 0 else "meta")


def _only_autocast(prepare_model: Callable[..., Any], model: Any, **options: Any) -> Any:
    """accelerate's `prepare_model` without what it does to models that are not sharded: neither moved nor copied."""
    return prepare_model(model, device_placement=False, evaluation_mode=True)


def _mend_views_of_8bit_states() -> None:
    """Let a view of torchao's 8-bit states keep its number type: a part in bfloat16 would become a float32, which the
    compiled step of the optimiser cannot read (torchao 0.18)."""
    from torchao.optim.subclass_8bit import OptimState8bit

    @OptimState8bit.implements(torch.ops.aten.view.default)
    def view(func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        state, shape = args
        return OptimState8bit(state.codes.view(shape), state.scale, state.qmap, state.signed, dtype=state.dtype)


def shard(model: nn.Module, device: torch.device, *, offload: bool) -> None:
    """Shard a model over all ranks, in place, with the values that the first rank's has.

    Args:
        model: whole in the first rank; of the same structure in the others, without values.
        device: where this rank computes.
        offload: keep the parts in the CPU's memory between uses.

    Raises:
        ModelError: this rank has made another structure.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
    first = dist.get_rank() == 0
    values = [parameter.detach() if first else None for parameter in model.parameters()]
    values.reverse()
    dtypes = number_types_of_first(model)
    replace_parameters(model, lambda whole: torch.empty(whole.shape, dtype=next(dtypes), device="meta"))
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh, offload_policy=policy)
    fully_shard(model, mesh=mesh, offload_policy=policy)

    def part(empty: Tensor) -> Tensor:
        assert isinstance(empty, DTensor)
        value = values.pop()
        whole = torch.empty(empty.shape, dtype=empty.dtype, device=device) if value is None else value.to(device)
        # One weight at a time: the first rank sends each its part.
        found = distribute_tensor(whole.contiguous(), mesh, empty.placements)
        return found.to("cpu") if offload else found

    replace_parameters(model, part)
    take_buffers_of_first(model, device)


def check_sharded(model: nn.Module) -> None:
    """Check that this rank holds its part of every parameter, and not more.

    Raises:
        ModelError: it holds a whole one.
    """
    ranks = dist.get_world_size()
    for name, parameter in model.named_parameters():
        most = -(-parameter.shape[0] // ranks) * parameter[:1].numel() if parameter.dim() else 0
        if not isinstance(parameter, DTensor) or parameter.to_local().numel() > most:
            raise ModelError(f"{name} is not sharded over the {ranks} processes\n    → please report this architecture")


def gather(model: nn.Module, device: torch.device) -> None:
    """Make all parameters whole: on the CPU in the first rank, without values in the others."""
    first = dist.get_rank() == 0
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()

    def whole(part: Tensor) -> Tensor:
        moved: Any = part.detach().to(device)
        found: Tensor = moved.full_tensor()
        return found.cpu() if first else found.to("meta")

    replace_parameters(model, whole)


def whole_values(model: nn.Module, device: torch.device, dtypes: Sequence[torch.dtype]) -> Iterator[Tensor]:
    """The whole value of each parameter of a sharded model, in all ranks."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    for part, dtype in zip(model.parameters(), dtypes, strict=True):
        moved: Any = part.detach().to(device, dtype)
        yield moved.full_tensor()


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, norm_type: float = 2.0) -> Tensor:
    """`clip_grad_norm_` of sharded gradients: by the norm of the whole ones, which it returns."""
    norm = torch.nn.utils.clip_grad_norm_(list(parameters), max_norm, norm_type)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
