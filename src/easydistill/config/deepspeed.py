"""What DeepSpeed is told: the `launch` section, the user's own JSON, and what `training` says in our words.

Values that both could say are said by `training`: in the file they are "auto", left out, or the same. Everything else
in the file is passed on as it is. Reading it loads no heavy library.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easydistill.config.launch import LaunchConfig

AUTO = "auto"
STAGE = "zero_optimization.stage"
OFFLOADS = {"optimizer": "offload_optimizer", "parameters": "offload_param"}
"""What `launch.offload` names → keys of `zero_optimization`."""
_SIZES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
BUCKET = 100_000_000
"""Values that are reduced, or gathered, at once: 400 MB in float32, where DeepSpeed's default is five times that."""
_NOT_LEARNED = frozenset(
    {
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "optimizer",
        "scheduler",
        "fp16",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "steps_per_print",
        "wall_clock_breakdown",
        "dump_state",
        "memory_breakdown",
        "flops_profiler",
        "comms_logger",
        "tensorboard",
        "wandb",
        "csv_monitor",
        "comet",
        "aio",
        "checkpoint",
        "activation_checkpointing",
    }
)
"""Keys that decide how DeepSpeed runs, or that must say what `training` says."""
_NOT_LEARNED_ZERO = frozenset(
    {
        "stage",
        "contiguous_gradients",
        "reduce_scatter",
        "reduce_bucket_size",
        "use_multi_rank_bucket_allreduce",
        "allgather_partitions",
        "allgather_bucket_size",
        "overlap_comm",
        "offload_param",
        "offload_optimizer",
        "sub_group_size",
        "round_robin_gradients",
        "memory_efficient_linear",
        "log_trace_cache_warnings",
        "enable_sanity_checks",
        "ignore_unused_parameters",
        "zero_hpz_partition_size",
        "load_from_fp32_weights",
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
        "stage3_model_persistence_threshold",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_module_granularity_threshold",
        "stage3_use_all_reduce_for_fetch_params",
        "stage3_gather_16bit_weights_on_model_save",
        "stage3_allgather_sequential",
    }
)


class DeepSpeedFileError(ValueError):
    """A config of DeepSpeed's cannot be read."""

    def __init__(self, problem: str, hint: str) -> None:
        self.problem, self.hint = problem, hint
        super().__init__(problem)


def read_deepspeed(path: str) -> dict[str, Any]:
    """The contents of the file that `launch.deepspeed` names.

    Raises:
        DeepSpeedFileError: it is missing, or not JSON as DeepSpeed takes it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        problem = "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)
        hint = f"paths are relative to the working directory, {Path.cwd().name}/"
        raise DeepSpeedFileError(f"{json.dumps(path)}: {problem}", hint) from None
    except UnicodeDecodeError:
        raise DeepSpeedFileError(f"{json.dumps(path)}: it is not text", "save it as UTF-8") from None
    try:
        found = json.loads(text, object_pairs_hook=_without_repeats)
    except ValueError as error:
        raise DeepSpeedFileError(f"{json.dumps(path)}: it is not JSON: {error}", "mend the file") from None
    if not isinstance(found, dict):
        raise DeepSpeedFileError(f"{json.dumps(path)}: it holds no object", "write { … }")
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{json.dumps(key)} is there twice")
        found[key] = value
    return found


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None if it is not there."""
    found: Any = config
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _fill(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key that is missing, null or "auto"."""
    *above, name = key.split(".")
    for inner in above:
        if config.get(inner) is None:
            config[inner] = {}
        config = config[inner]
    if config.get(name) in (None, AUTO):
        config[name] = value


def zero_stage(launch: LaunchConfig, content: Mapping[str, Any] | None = None) -> int:
    """Which stage of ZeRO a `launch` section with DeepSpeed means; 0 if neither it nor the file says."""
    if launch.strategy.startswith("zero"):
        return int(launch.strategy.removeprefix("zero"))
    said = value_at(content if content is not None else read_deepspeed(launch.deepspeed or ""), STAGE)
    return said if type(said) is int else 0


def offload_devices(launch: LaunchConfig) -> dict[str, str]:
    """What waits elsewhere than on the GPU, as `launch.offload` names it → "cpu" or "nvme", by the section or its file.

    Raises:
        DeepSpeedFileError: the file cannot be read.
    """
    found: dict[str, str] = dict.fromkeys(launch.offload, "cpu")
    if launch.deepspeed is None:
        return found
    content = read_deepspeed(launch.deepspeed)
    for name, part in OFFLOADS.items():
        device = value_at(content, f"zero_optimization.{part}.device")
        # DeepSpeed moves weights where they are in parts alone.
        if device in ("cpu", "nvme") and (name != "parameters" or zero_stage(launch, content) == 3):
            found[name] = device
    return found


def deepspeed_config(launch: LaunchConfig, *, bf16: bool) -> dict[str, Any]:
    """A config for DeepSpeed as transformers takes it, where "auto" stands for what its own arguments say.

    Args:
        bf16: whether the training computes in bfloat16.
    """
    config = copy.deepcopy(read_deepspeed(launch.deepspeed)) if launch.deepspeed is not None else {}
    _fill_zero(config, launch)
    _fill_precision(config, bf16)
    for block in ("optimizer", "scheduler"):
        # They say what `training` says, which makes both: DeepSpeed's own optimisers are compiled on first use.
        config.pop(block, None)
    missing = dict.fromkeys(_SIZES, AUTO) | {
        # Any that `training.optim` names, also where it steps on the CPU; DeepSpeed's own would be compiled.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    return missing | config


def _fill_zero(config: dict[str, Any], launch: LaunchConfig) -> None:
    """The stage, what waits on the CPU, and sizes that suit more than the largest machines."""
    _fill(config, STAGE, zero_stage(launch, config))
    zero = config["zero_optimization"]
    for name, part in OFFLOADS.items():
        if name in launch.offload:
            _fill(zero, f"{part}.device", "cpu")
            zero[part].setdefault("pin_memory", True)
        elif part in zero:
            _fill(zero, f"{part}.device", "none")
    if launch.deepspeed is None:
        zero.update(reduce_bucket_size=BUCKET, allgather_bucket_size=BUCKET)


def _fill_precision(config: dict[str, Any], bf16: bool) -> None:
    """Numbers as in whole copies of the model: weights stay float32, and autocast computes in bfloat16.

    DeepSpeed's `bf16` keeps weights, and adds up gradients, in bfloat16: only a file that says so gets it.
    """
    _fill(config, "bf16.enabled", False)
    _fill(config, "fp16.enabled", False)
    # An empty list: no weight is gathered, and no gradient reduced, in fewer bits than it has.
    config.setdefault("torch_autocast", {"dtype": "bfloat16", "lower_precision_safe_modules": []})
    _fill(config, "torch_autocast.enabled", bf16 and not config["bf16"]["enabled"])


def deepspeed_identity(launch: LaunchConfig | None) -> dict[str, Any]:
    """What of a user's file can change what a student learns; empty if nothing does."""
    if launch is None or launch.deepspeed is None:
        return {}
    try:
        content = read_deepspeed(launch.deepspeed)
    except DeepSpeedFileError:
        # `deepspeed_issues` tells.
        return {}
    found = {key: value for key, value in content.items() if key not in _NOT_LEARNED and value != AUTO}
    zero = found.pop("zero_optimization", None)
    if isinstance(zero, Mapping):
        zero = {key: value for key, value in zero.items() if key not in _NOT_LEARNED_ZERO}
        found |= {"zero_optimization": zero} if zero else {}
    if value_at(found, "bf16.enabled") is not True:
        found.pop("bf16", None)
    if value_at(found, "torch_autocast.enabled") is False:
        del found["torch_autocast"]
    return found


def deepspeed_notes(launch: LaunchConfig | None) -> list[str]:
    """What a user would not expect of how their file is read, a line each."""
    if launch is None or launch.deepspeed is None:
        return []
    try:
        content = read_deepspeed(launch.deepspeed)
    except DeepSpeedFileError:
        return []
    notes = []
    if blocks := [name for name in ("optimizer", "scheduler") if name in content]:
        named = " and ".join(f'"{name}"' for name in blocks)
        notes.append(
            f"{launch.deepspeed}: {named} say what training says, and are made from that: DeepSpeed's own optimisers "
            "would be compiled first, and take weight decay from biases and norms too"
        )
    nvme = any(value_at(content, f"zero_optimization.{part}.device") == "nvme" for part in OFFLOADS.values())
    if nvme or content.get("zero_force_ds_cpu_optimizer") is True:
        notes.append(f"{launch.deepspeed}: a part of DeepSpeed is compiled before the first step, for about a minute")
    return notes
