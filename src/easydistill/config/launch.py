"""The `launch` section: how many processes train, on how many machines, and how they share the model."""

from __future__ import annotations

from typing import Literal

from easydistill.config.base import NonEmptyStr, PositiveFloat, PositiveInt, Section

StrategyName = Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"]


class LaunchConfig(Section):
    """Several processes for the stages that train. What they learn depends on their number only as one process does on
    its batch size: a step has `per_device_train_batch_size` rows for each of them."""

    processes: PositiveInt | Literal["auto"] = "auto"
    """Processes on this machine; `auto`: one for each GPU, one without a GPU."""
    strategy: StrategyName = "ddp"
    """How the processes share the model: `ddp` keeps a whole copy of it in each."""
    offload: tuple[Literal["optimizer", "parameters"], ...] = ()
    """What waits in the CPU's memory while the GPU does not need it."""
    deepspeed: NonEmptyStr | None = None
    """A config of DeepSpeed's own (JSON), with its "auto" filled from `training`."""
    gpu_memory_gb: PositiveFloat | None = None
    """Memory of a GPU where the run will take place, for a `plan` made elsewhere; by default that of this machine's."""
