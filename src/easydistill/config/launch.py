"""The `launch` section: how many processes train, on how many machines, and how they share the model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from easydistill.config.base import NonEmptyStr, PositiveInt, Section

StrategyName = Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"]
LauncherName = Literal["auto", "none", "processes", "nodes", "slurm"]


class LaunchConfig(Section):
    """Several processes for the stages that train. What they learn depends on their number only as one process does on
    its batch size: a step has `per_device_train_batch_size` rows for each of them."""

    processes: PositiveInt | Literal["auto"] = "auto"
    """Processes on each machine; `auto`: as many as a launcher has started or says, else one for each GPU, one without
    a GPU."""
    nodes: PositiveInt | Literal["auto"] = "auto"
    """Machines that train together, with the run directory on storage that all of them see. The same command is started
    on each, by a launcher or with `--node-rank 0`, `--node-rank 1` and so on. `auto`: as many as a launcher says, else
    one."""
    rendezvous: Annotated[str, Field(pattern=r"^\S+:[0-9]{1,5}$")] | None = None
    """`host:port` where the first machine awaits the others: a name or address of it, and a free port. A launcher says
    it too."""
    launcher: LauncherName = "auto"
    """What the variables in the environment mean. `processes`: RANK and WORLD_SIZE count processes, as torchrun,
    `accelerate launch` and DeepSpeed's launcher set them; `nodes`: they count machines, as in PAI-DLC and PyTorchJob;
    `slurm`: srun's own variables; `none`: nothing. `auto`: `processes` if there is a LOCAL_RANK too, else `slurm` in a
    step of srun, else `nodes` if there is a MASTER_ADDR too."""
    strategy: StrategyName = "ddp"
    """How the processes share the model: `ddp` keeps a whole copy of it in each."""
    offload: tuple[Literal["optimizer", "parameters"], ...] = ()
    """What waits in the CPU's memory while the GPU does not need it."""
    deepspeed: NonEmptyStr | None = None
    """A config of DeepSpeed's own (JSON), with its "auto" filled from `training`."""
