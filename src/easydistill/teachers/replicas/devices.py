"""Which devices each server has, and whether there are enough. Light: preflight asks too."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping

from easydistill.config.inference import VllmOptions
from easydistill.errors import ConfigError, ConfigIssue


def replica_issues(config: VllmOptions) -> list[ConfigIssue]:
    """An issue if the servers need more devices than there are."""
    if config.replicas is None or importlib.util.find_spec("torch") is None:
        return []
    try:
        device_parts(config.replicas, config.tensor_parallel_size or None, on_cpu=not gpus())
    except ConfigError as error:
        return list(error.issues)
    return []


def gpus() -> int:
    """GPUs of this machine. Does not start CUDA."""
    import torch

    return torch.cuda.device_count()


def device_parts(replicas: int, each: int | None, *, on_cpu: bool) -> list[Mapping[str, str]]:
    """The variables that give each server its own devices: so many GPUs, or a part of the CPU's cores.

    Args:
        each: GPUs of a server; by default as many as there are for it.

    Raises:
        ConfigError: there are not enough.
    """
    if on_cpu:
        if each is not None and each > 1:
            problem = f"a server of {each} devices, but there is no GPU"
            raise ConfigError(ConfigIssue("this machine", "inference.tensor_parallel_size", problem, "set it to 1"))
        return _core_parts(replicas)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in visible.split(",")] if visible else [str(number) for number in range(gpus())]
    each = each or len(names) // replicas
    if each * replicas > len(names) or not each:
        problem = f"{replicas} servers of {max(1, each)} GPUs need {replicas * max(1, each)}, and {len(names)} are here"
        hint = "lower replicas, or tensor_parallel_size"
        raise ConfigError(ConfigIssue("this machine", "inference.replicas", problem, hint))
    return [{"CUDA_VISIBLE_DEVICES": ",".join(names[at * each : (at + 1) * each])} for at in range(replicas)]


def _core_parts(replicas: int) -> list[Mapping[str, str]]:
    name = "VLLM_CPU_OMP_THREADS_BIND"
    if name in os.environ or not hasattr(os, "sched_getaffinity"):
        return [{}] * replicas
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // replicas
    if replicas == 1 or not each:
        return [{}] * replicas
    # By default each would bind its threads to the same cores.
    return [{name: ",".join(map(str, cores[at * each : (at + 1) * each]))} for at in range(replicas)]
