"""The `launch` section: how many processes train, on how many machines, and how they share the model."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from easydistill.config.base import NonEmptyStr, PositiveFloat, PositiveInt, Section, Unfit

StrategyName = Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"]
LauncherName = Literal["auto", "none", "processes", "nodes", "slurm"]
LAST_PORT = 65535


def _port_exists(address: str) -> str:
    port = address.rpartition(":")[2]
    if not 0 < int(port) <= LAST_PORT:
        raise Unfit(f"{port} is no port of TCP's", f"write host:port, with a port from 1 to {LAST_PORT}")
    return address


class LaunchConfig(Section):
    """Several processes for the stages that train or score. A step has `per_device_train_batch_size` rows for each of
    them, so two processes learn what one with twice the batch size learns."""

    processes: PositiveInt | Literal["auto"] = "auto"
    """Processes on each machine. `auto`: one for each GPU, one without a GPU; or as many as a launcher such as torchrun
    starts."""
    nodes: PositiveInt | Literal["auto"] = "auto"
    """Machines that train together, with the run directory on storage that all of them see. The same command is started
    on each, by a launcher or with `--node-rank 0`, `--node-rank 1` and so on. `auto`: as many as a launcher says, else
    one."""
    rendezvous: Annotated[str, Field(pattern=r"^\S+:[0-9]{1,5}$"), AfterValidator(_port_exists)] | None = None
    """`host:port` where the first machine awaits the others: a name or address of it, and a free port. A launcher says
    it too."""
    launcher: LauncherName = "auto"
    """What the variables in the environment mean. `processes`: RANK and WORLD_SIZE count processes, as torchrun,
    `accelerate launch` and DeepSpeed's launcher set them; `nodes`: they count machines, as in PAI-DLC and PyTorchJob;
    `slurm`: srun's own variables; `none`: nothing. `auto`: `processes` if there is a LOCAL_RANK too, else `slurm` in a
    step of srun, else `nodes` if there is a MASTER_ADDR too."""
    strategy: StrategyName = "ddp"
    """How the processes share the model: `ddp` keeps a whole copy of it in each. By DeepSpeed, each keeps a part of the
    optimiser's state (`zero1`), of gradients too (`zero2`), of weights too (`zero3`). `fsdp2`: parts of all three."""
    offload: tuple[Literal["optimizer", "parameters"], ...] = ()
    """What waits in the CPU's memory while the GPU does not need it: the optimiser's state, where it is in parts, and
    weights (`parameters`), with `zero3` or `fsdp2`."""
    deepspeed: NonEmptyStr | None = None
    """A config of DeepSpeed's own (JSON), with its "auto" filled from `training`. What both say must be the same; what
    only the file says is passed on. Without `strategy`, the file names the stage of ZeRO."""
    gpu_memory_gb: PositiveFloat | None = None
    """Memory of a GPU where the run will take place, for a `plan` made elsewhere; by default that of this machine's."""

    @property
    def uses_deepspeed(self) -> bool:
        """Whether DeepSpeed trains."""
        return self.deepspeed is not None or self.strategy.startswith("zero")

    @property
    def shares(self) -> bool:
        """Whether a process alone trains otherwise than without this section: parts of the model wait elsewhere."""
        return self.deepspeed is not None or self.strategy != "ddp"

    @property
    def sharing(self) -> str:
        """The strategy, as it is shown."""
        named = "strategy" in self.model_fields_set or self.deepspeed is None
        return self.strategy if named else f"DeepSpeed, {self.deepspeed}"

    @property
    def known_ranks(self) -> int | None:
        """Processes that train together; None if that is known only where they run."""
        if self.processes == "auto" or self.nodes == "auto":
            return None
        return self.processes * self.nodes

    @model_validator(mode="after")
    def _strategy_can(self) -> Self:
        if self.deepspeed is not None:
            if "strategy" in self.model_fields_set and not self.strategy.startswith("zero"):
                problem = f'strategy is "{self.strategy}", and deepspeed names a config of DeepSpeed\'s'
                raise Unfit(problem, "remove launch.strategy, or launch.deepspeed")
            return self
        if self.offload and self.strategy == "ddp":
            problem = "ddp keeps a whole copy of everything in each process, and offloads nothing"
            raise Unfit(problem, 'remove launch.offload, or set launch.strategy to "zero2", "zero3" or "fsdp2"')
        if self.strategy == "fsdp2" and len(set(self.offload)) == 1:
            problem = f'fsdp2 steps where the weights are, so it does not offload "{self.offload[0]}" alone'
            raise Unfit(
                problem, 'set launch.offload=["optimizer", "parameters"], or launch.strategy to "zero2" or "zero3"'
            )
        if "parameters" in self.offload and self.strategy in ("zero1", "zero2"):
            problem = f"{self.strategy} keeps all weights in each process, and does not offload parameters"
            raise Unfit(problem, 'remove "parameters" from launch.offload, or set launch.strategy="zero3"')
        return self
