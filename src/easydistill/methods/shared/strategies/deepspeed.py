"""ZeRO, by DeepSpeed: each process holds a part of the optimiser's state, of gradients too, or of weights too.

Numbers are those of whole copies (`config/deepspeed.py`); the optimiser and its schedule are those of `ddp`. The same
code runs with gloo on CPUs and NCCL on GPUs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from easydistill.config.deepspeed import deepspeed_config, offload_devices, zero_stage
from easydistill.config.deepspeed_checks import batch_size_issues
from easydistill.config.launch import LaunchConfig
from easydistill.config.training import TrainerConfig
from easydistill.errors import ConfigError, MissingExtra
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
from easydistill.models.loading import computes_well_in_bf16, device


def zero(launch: LaunchConfig) -> Zero:
    """The strategy of a `launch` section that uses DeepSpeed."""
    stage = zero_stage(launch)
    return (Zero3 if stage == 3 else Zero)(launch, stage)


class Zero(Strategy):
    """ZeRO of stage 1 (optimiser state in parts) or 2 (gradients too)."""

    def __init__(self, launch: LaunchConfig, stage: int) -> None:
        super().__init__(launch)
        # Not `launch.strategy`, which is unset where the file names the stage.
        self.name = f"zero{stage}"
        deepspeed = _import_deepspeed()
        # On the group of processes that there is: else it counts one process where configs are checked.
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)

    def arguments(self, config: TrainerConfig) -> dict[str, Any]:
        from easydistill.methods.shared.ranks import world_size

        bf16 = computes_well_in_bf16(device()) if config.bf16 == "auto" else config.bf16
        told = deepspeed_config(self.launch, bf16=bf16)
        if issues := list(batch_size_issues(self.launch, told, config, world_size())):
            raise ConfigError(issues)
        # Else transformers lets accelerate, and that DeepSpeed, convert the weights.
        return {"bf16": bool(told["bf16"]["enabled"]), "deepspeed": told}

    def prepared(self, trainer: Any) -> None:
        # The engine's checkpoints hold the weights; beside them transformers would write all of them once more.
        trainer.save_model = _only_folder

    def whole(self, trainer: Any, model: Any) -> None:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        trainer.model_wrapped.destroy()
        # Models that are loaded from here on are not to be in parts.
        unset_hf_deepspeed_config()


class Zero3(Zero):
    """ZeRO of stage 3: weights in parts too, gathered as modules run."""

    shards: ClassVar[bool] = True
    compiles: ClassVar[bool] = False

    def loading(self) -> AbstractContextManager[None]:
        return only_first_loads()

    def decided(self, ask: Callable[[], T]) -> T:
        return decided_by_first(ask)

    def gathering(self, model: Any, computed: torch.dtype | None) -> Gathered:
        on, dtypes = device(), decided_by_first(lambda: number_types(model, computed))
        return Gathered(model, lambda: _whole_values(model, on, dtypes), _unnoticed)

    def kept_as_it_is(self, model: Any, computed: torch.dtype | None) -> Gathered:
        on = device()
        home = torch.device("cpu") if "parameters" in offload_devices(self.launch) else on
        parts = KeptInParts(model, decided_by_first(lambda: number_types(model, computed)), on, home)
        return Gathered(model, parts.values, _unnoticed)

    def beside(self, model: Any) -> Any:
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        # TRL asks each weight that it multiplies with whether it must be gathered.
        for parameter in model.parameters():
            parameter.ds_status = ZeroParamStatus.AVAILABLE
        return model

    def prepared(self, trainer: Any) -> None:
        super().prepared(trainer)
        _hook_alike(trainer.model)
        self._modules = OrdinaryModules(trainer.model)
        _take_parts(trainer)
        # Copies in bfloat16 that are kept for the pass would hold all weights again.
        torch.set_autocast_cache_enabled(False)

    def whole(self, trainer: Any, model: Any) -> None:
        torch.set_autocast_cache_enabled(True)
        values = _gathered(model)
        super().whole(trainer, model)
        self._modules.restore()
        del self._modules
        _put_whole(model, values)
        # The buffers, which are not in parts.
        model.to("cpu" if torch.distributed.get_rank() == 0 else "meta")


def _hook_alike(model: nn.Module) -> None:
    """Let transformers' hooks on layers stand before DeepSpeed's in all processes.

    It installs them in the first pass that wants hidden states, as LLaVA does of its tower. In the first process that
    is a check before the training; in the others DeepSpeed's would be there already, what they see of the backward
    pass another order of modules, and the training would end with the second step.
    """
    from transformers import PreTrainedModel
    from transformers.utils.output_capturing import maybe_install_capturing_hooks

    for module in model.modules():
        if not isinstance(module, PreTrainedModel):
            continue
        # Of one with others inside, transformers would install those of the others too, once more.
        if not any(isinstance(inner, PreTrainedModel) for inner in list(module.modules())[1:]):
            maybe_install_capturing_hooks(module)


@contextlib.contextmanager
def _unnoticed() -> Iterator[None]:
    """Let transformers and TRL take models for what they are, here ones with all weights.

    They ask whether ZeRO-3 is used, not by which model: `generate` would keep the passes of all processes in step.
    """
    from transformers.integrations import deepspeed as integration

    reference = integration._hf_deepspeed_config_weak_ref
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = reference


def _import_deepspeed() -> Any:
    """DeepSpeed, for this machine's kind of device.

    Raises:
        MissingExtra: it is not installed.
    """
    if not torch.cuda.is_available():
        # Before the first import, which looks for devices.
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import deepspeed
        from deepspeed import ops
    except ImportError:
        raise MissingExtra("deepspeed", "launch.strategy") from None
    # Sums over shared memory, on CPUs, for inference alone: compiled, by every process, before the first step.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _only_folder(output_dir: str | None = None, _internal_call: bool = False) -> None:
    """In place of the trainer's `save_model`, in a checkpoint."""
    assert output_dir is not None, "only checkpoints are saved"
    Path(output_dir).mkdir(parents=True, exist_ok=True)


def _take_parts(trainer: Any) -> None:
    """Let each process keep its part of every weight, before the whole is moved to a device.

    The values are those of the first process, which sends them one at a time.
    """
    import deepspeed

    dtypes = number_types_of_first(trainer.model)
    if torch.distributed.get_rank() > 0:
        # Memory that is not written to is not taken: what the first process sends is kept in part, and the rest freed.
        replace_parameters(trainer.model, lambda whole: torch.empty(whole.shape, dtype=next(dtypes)))
    take_buffers_of_first(trainer.model, trainer.args.device)
    config = trainer.args.hf_deepspeed_config
    config.trainer_config_finalize(trainer.args, trainer.model, num_training_steps=1)
    deepspeed.zero.Init(module=trainer.model, config_dict_or_path=config.config)


def _gathered(model: nn.Module) -> dict[nn.Parameter, nn.Parameter]:
    """Each parameter's whole value: on the CPU in the first process, without values in the others. All must call it."""
    import deepspeed

    first = torch.distributed.get_rank() == 0
    found: dict[nn.Parameter, nn.Parameter] = {}
    for parameter in model.parameters():
        # One at a time: a device need not have room for all.
        with deepspeed.zero.GatheredParameters([parameter]):
            value = parameter.detach()
            value = value.to("cpu", copy=True) if first else value.to("meta")
        found[parameter] = nn.Parameter(value, requires_grad=parameter.requires_grad)
    return found


def _whole_values(model: nn.Module, on: torch.device, dtypes: Sequence[torch.dtype]) -> Iterator[Tensor]:
    """The whole value of each parameter, in all processes."""
    import deepspeed

    for parameter, dtype in zip(model.parameters(), dtypes, strict=True):
        with deepspeed.zero.GatheredParameters([parameter]):
            value = parameter.detach().to(on, dtype, copy=True)
        yield value


def _put_whole(model: nn.Module, values: dict[nn.Parameter, nn.Parameter]) -> None:
    """Replace each parameter by its whole value; one that several modules share stays shared."""
    for module in model.modules():
        # DeepSpeed's own mapping gathers on access.
        module.__dict__["_parameters"] = {
            name: None if parameter is None else values[parameter] for name, parameter in module._parameters.items()
        }
