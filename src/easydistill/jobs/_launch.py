"""What a job cannot do in several processes, refused when the config is read."""

from __future__ import annotations

from easydistill.config.base import Unfit
from easydistill.config.launch import LaunchConfig
from easydistill.methods.dpo.config import PreferenceConfig

ALONE = "remove `launch`, or set launch.processes to 1"


def refuse_several(launch: LaunchConfig | None, problem: str, hint: str = ALONE) -> None:
    """Refuse a config whose `launch` section asks for several processes, or may.

    Raises:
        Unfit: it does.
    """
    if launch is not None and (launch.processes != 1 or launch.nodes not in (1, "auto")):
        raise Unfit(problem, hint)


def check_pair_losses(launch: LaunchConfig | None, preference: PreferenceConfig) -> None:
    """Refuse losses of pairs that are no sums over pairs or tokens: ranks could not add up their parts.

    Raises:
        Unfit: there is such a loss, and there are several processes.
    """
    if preference.sorting:
        problem = f"{preference.sorting[0]} sorts the answers of a whole batch, which several processes share"
        refuse_several(launch, problem, f"use another preference.loss_type, or {ALONE}")
    if preference.weighting and "sft" in preference.losses:
        problem = "weighting multiplies the `sft` loss of a whole batch, which several processes share"
        refuse_several(launch, problem, f"remove one of preference.weighting and `sft`, or {ALONE}")


def check_rollouts(launch: LaunchConfig | None, section: str, engine: str) -> None:
    """Refuse what trainings on the student's own answers cannot share.

    Args:
        section: the job's section that names the engine, as `rollouts`.

    Raises:
        Unfit: the engine is vLLM, which would draw other answers in each number of processes, and takes over whole
            weights.
    """
    if engine != "vllm" or launch is None:
        return
    problem = "answers of vLLM's engine inside the training cannot be shared by several processes"
    refuse_several(launch, problem, f"set {section}.rollouts to transformers, or {ALONE}")
    if launch.strategy in ("fsdp2", "zero3"):
        problem = f"vLLM's engine takes over whole weights, of which {launch.strategy} leaves a process a part"
        raise Unfit(problem, f"set {section}.rollouts to transformers, or launch.strategy to ddp or zero2")


def certain_processes(launch: LaunchConfig | None) -> int:
    """A number that the number of processes is a multiple of: what only the machines will tell counts as 1."""
    if launch is None:
        return 1
    processes, nodes = (1 if count == "auto" else count for count in (launch.processes, launch.nodes))
    return processes * nodes
