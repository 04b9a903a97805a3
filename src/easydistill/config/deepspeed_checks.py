"""What is wrong with a `launch` section that uses DeepSpeed: in its file, and with the training under it.

Loads no heavy library.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from easydistill.config.deepspeed import (
    AUTO,
    OFFLOADS,
    STAGE,
    DeepSpeedFileError,
    read_deepspeed,
    value_at,
    zero_stage,
)
from easydistill.config.launch import LaunchConfig
from easydistill.config.training import TrainerConfig
from easydistill.errors import ConfigIssue

KEY = "launch.deepspeed"
SAME_IN_PARTS = frozenset({"adamw_torch", "adamw_torch_fused", "sgd"})
"""Optimisers that treat each weight by itself, so that ZeRO's parts of flattened weights are no other algorithm."""

_BLOCKS = (
    "zero_optimization",
    "zero_optimization.offload_optimizer",
    "zero_optimization.offload_param",
    "optimizer",
    "optimizer.params",
    "scheduler",
    "scheduler.params",
    "bf16",
    "fp16",
    "torch_autocast",
)
"""What holds keys of its own that are read here, or filled in."""
_MAY_BE_NULL = frozenset(name for name in _BLOCKS if "." in name)
"""Of these: DeepSpeed takes null for what is not there."""
_OFFLOAD_DEVICES = (None, AUTO, "none", "cpu", "nvme")
_OPTIMIZERS = {"adam": "adamw_torch", "adamw": "adamw_torch", "sgd": "sgd"}
_SCHEDULERS = {"WarmupLR": "constant_with_warmup", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
_FILLED_LATER = frozenset(
    {
        "reduce_bucket_size",
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
        "stage3_gather_16bit_weights_on_model_save",
    }
)
"""Of `zero_optimization`: filled from the width of the student by transformers, the last by accelerate."""
_CLASHING = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
    "train_batch_size": "",
}
"""Keys of the file → fields of `training` that say the same; the last follows from others."""


def deepspeed_issues(
    launch: LaunchConfig | None, training: TrainerConfig | None, *, only_present: bool = False
) -> list[ConfigIssue]:
    """What is wrong with a `launch` section that uses DeepSpeed, its file, and the training under it.

    Args:
        only_present: tell nothing of a file that is not on this machine.
    """
    if launch is None or not launch.uses_deepspeed:
        return []
    if launch.deepspeed is None:
        return list(_training_issues(launch.strategy, zero_stage(launch), training))
    if only_present and not Path(launch.deepspeed).is_file():
        return []
    try:
        content = read_deepspeed(launch.deepspeed)
    except DeepSpeedFileError as error:
        return [ConfigIssue("config", KEY, error.problem, error.hint)]
    found = list(_structure_issues(launch.deepspeed, content))
    if found:
        return found
    stage = zero_stage(launch, content)
    found += _stage_issues(launch, content, stage)
    found += _training_issues(f"ZeRO-{stage}", stage, training)
    if training is not None:
        found += _clashes(launch, content, training)
    return found


def rollout_issues(launch: LaunchConfig | None, engine: str) -> list[ConfigIssue]:
    """An issue if a file of DeepSpeed's keeps weights in parts and vLLM is to write the answers of a training.

    Args:
        engine: what writes them.
    """
    if launch is None or launch.deepspeed is None or engine != "vllm":
        return []
    try:
        stage = zero_stage(launch)
    except DeepSpeedFileError:
        # `deepspeed_issues` tells.
        return []
    if stage != 3:
        return []
    problem = f"{launch.deepspeed}: vLLM's engine takes over whole weights, and with {STAGE} 3 a process has a part"
    return [ConfigIssue("config", KEY, problem, "write 1 or 2 there, or set rollouts to transformers")]


def _structure_issues(path: str, content: Mapping[str, Any]) -> Iterator[ConfigIssue]:
    for name in _BLOCKS:
        above, _, key = name.rpartition(".")
        block = value_at(content, above) if above else content
        if not isinstance(block, Mapping) or key not in block or isinstance(block[key], Mapping):
            continue
        if block[key] is not None or name not in _MAY_BE_NULL:
            yield ConfigIssue("config", KEY, f"{path}: {name} is {json.dumps(block[key])}", "write { … }, or remove it")
    for name, value in content.items():
        if value == AUTO and name not in _CLASHING and name not in _BLOCKS:
            yield _nothing_fills(path, name)
    zero = content.get("zero_optimization")
    known = _FILLED_LATER | {"stage", *OFFLOADS.values()}
    for name, value in zero.items() if isinstance(zero, Mapping) else ():
        if value == AUTO and name not in known:
            yield _nothing_fills(path, f"zero_optimization.{name}")
    for part in OFFLOADS.values():
        device = value_at(content, f"zero_optimization.{part}.device")
        if device not in _OFFLOAD_DEVICES:
            problem = f"{path}: zero_optimization.{part}.device is {json.dumps(device)}"
            yield ConfigIssue("config", KEY, problem, 'write "cpu", "nvme" or "none"')


def _nothing_fills(path: str, key: str) -> ConfigIssue:
    return ConfigIssue("config", KEY, f'{path}: {key} is "auto", which nothing fills', "write a value, or remove it")


def _stage_issues(launch: LaunchConfig, content: Mapping[str, Any], stage: int) -> Iterator[ConfigIssue]:
    path, said = launch.deepspeed, value_at(content, STAGE)
    if stage not in (1, 2, 3):
        problem = f"{path}: {STAGE} is {json.dumps(said)}"
        yield ConfigIssue(
            "config", KEY, problem, "write 1, 2 or 3 there, or set launch.strategy to zero1, zero2, zero3"
        )
    elif said not in (None, AUTO) and (type(said) is not int or said != stage):
        problem = f'{path}: {STAGE} is {json.dumps(said)}, launch.strategy is "{launch.strategy}"'
        yield ConfigIssue("config", KEY, problem, f"leave launch.strategy out, or write {stage} in the file")
    for name, part in OFFLOADS.items():
        there = value_at(content, f"zero_optimization.{part}.device")
        if name in launch.offload and there not in (None, AUTO, "cpu"):
            problem = f'{path}: zero_optimization.{part}.device is {json.dumps(there)}, launch.offload names "{name}"'
            yield ConfigIssue("config", KEY, problem, f'leave "{name}" out of launch.offload, or write "auto"')
    if "parameters" in launch.offload and stage in (1, 2):
        problem = f'launch.offload names "parameters", which ZeRO-{stage} ({path}) keeps whole in each process'
        yield ConfigIssue("config", "launch.offload", problem, 'remove "parameters", or use stage 3')


def _training_issues(named: str, stage: int, training: TrainerConfig | None) -> Iterator[ConfigIssue]:
    """What a training asks for that ZeRO cannot do as whole copies of the model do."""
    if training is None:
        return
    if training.optim not in SAME_IN_PARTS:
        problem = (
            f"{named} steps on parts of flattened weights, for which {training.optim} is another algorithm: its "
            "statistics are those of rows or blocks"
        )
        hint = 'set training.optim="adamw_torch_fused", or launch.strategy to ddp or fsdp2'
        yield ConfigIssue("config", "training.optim", problem, hint)
    if stage == 3 and getattr(training, "compile", None) is True:
        problem = f"{named} gathers each layer's weights while it runs, which compiled layers do not let it"
        yield ConfigIssue("config", "training.compile", problem, "remove training.compile, or use zero2 or ddp")


def _clashes(launch: LaunchConfig, content: Mapping[str, Any], training: TrainerConfig) -> Iterator[ConfigIssue]:
    """Values of the file that contradict `training`."""
    path = launch.deepspeed
    assert path is not None, "the file was read"
    for key, field in _CLASHING.items():
        if field:
            yield from _clash(path, key, content.get(key), field, getattr(training, field))
    yield from batch_size_issues(launch, content, training, launch.known_ranks)
    yield from _clash(path, "bf16.enabled", value_at(content, "bf16.enabled"), "bf16", training.bf16)
    yield from _clash(
        path, "torch_autocast.enabled", value_at(content, "torch_autocast.enabled"), "bf16", training.bf16
    )
    dtype = value_at(content, "torch_autocast.dtype")
    if dtype not in (None, "bfloat16", "bf16", "torch.bfloat16"):
        problem = f"{path}: torch_autocast.dtype is {json.dumps(dtype)}, trainings compute in bfloat16 or float32"
        yield ConfigIssue("config", KEY, problem, 'write "bfloat16", or remove it')
    if value_at(content, "fp16.enabled") not in (None, AUTO, False):
        problem = (
            f"{path}: fp16.enabled is true, training.bf16 is {json.dumps(training.bf16)}; there is no float16 here"
        )
        yield ConfigIssue("config", KEY, problem, 'write "auto" or false')
    yield from _optimizer_clashes(path, content.get("optimizer"), training)
    yield from _scheduler_clashes(path, content.get("scheduler"), training)


def _clash(path: str, key: str, there: Any, field: str, here: Any) -> Iterator[ConfigIssue]:
    if there in (None, AUTO) or (there == here and isinstance(there, bool) == isinstance(here, bool)):
        return
    problem = f"{path}: {key} is {json.dumps(there)}, training.{field} is {json.dumps(here)}"
    yield ConfigIssue("config", KEY, problem, f'write "auto" in the file, or set training.{field}={json.dumps(there)}')


def batch_size_issues(
    launch: LaunchConfig, content: Mapping[str, Any], training: TrainerConfig, ranks: int | None
) -> Iterator[ConfigIssue]:
    """An issue if the file's `train_batch_size` is not that of so many processes; `ranks` is None if unknown."""
    said = content.get("train_batch_size")
    if said in (None, AUTO) or ranks is None:
        return
    rows, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
    if said != rows * steps * ranks:
        product = f"per_device_train_batch_size {rows} × gradient_accumulation_steps {steps} × {ranks} processes"
        problem = f"{launch.deepspeed}: train_batch_size is {json.dumps(said)}, training has {product}"
        yield ConfigIssue("config", KEY, f"{problem} = {rows * steps * ranks}", 'write "auto" in the file')


def _optimizer_clashes(path: str, block: Mapping[str, Any] | None, training: TrainerConfig) -> Iterator[ConfigIssue]:
    if block is None:
        return
    kind = block.get("type")
    if not isinstance(kind, str) or not training.optim.startswith(_OPTIMIZERS.get(kind.lower(), "-")):
        problem = f'{path}: optimizer.type is {json.dumps(kind)}, training.optim is "{training.optim}"'
        yield ConfigIssue("config", KEY, problem, "remove the optimizer from the file; training.optim names it")
        return
    fields = {
        "lr": ("learning_rate", training.learning_rate),
        "betas": ("adam_beta1 and adam_beta2", [training.adam_beta1, training.adam_beta2]),
        "eps": ("adam_epsilon", training.adam_epsilon),
        "weight_decay": ("weight_decay", training.weight_decay),
    }
    harmless = {"torch_adam": None, "fp32_optimizer_states": True, "adam_w_mode": True, "bias_correction": True}
    yield from _block_clashes(path, "optimizer", block, fields, harmless)


def _scheduler_clashes(path: str, block: Mapping[str, Any] | None, training: TrainerConfig) -> Iterator[ConfigIssue]:
    if block is None:
        return
    kind, ours = block.get("type"), training.lr_scheduler_type
    if not isinstance(kind, str) or _SCHEDULERS.get(kind) != ours:
        problem = f'{path}: scheduler.type is {json.dumps(kind)}, training.lr_scheduler_type is "{ours}"'
        meant = _SCHEDULERS.get(str(kind))
        other = f', or set training.lr_scheduler_type="{meant}"' if meant else ""
        yield ConfigIssue("config", KEY, problem, f"remove the scheduler from the file{other}")
        return
    fields = {
        "warmup_max_lr": ("learning_rate", training.learning_rate),
        "warmup_num_steps": ("warmup_steps", training.warmup_steps),
        "total_num_steps": ("max_steps", training.max_steps),
    }
    yield from _block_clashes(path, "scheduler", block, fields, {"warmup_min_lr": 0, "warmup_type": "linear"})


def _block_clashes(
    path: str,
    name: str,
    block: Mapping[str, Any],
    fields: Mapping[str, tuple[str, Any]],
    harmless: Mapping[str, Any],
) -> Iterator[ConfigIssue]:
    """Parameters of a block that are not those of `training`, or that nothing there says."""
    for key, there in (block.get("params") or {}).items():
        full = f"{name}.params.{key}"
        if key in fields:
            yield from _clash(path, full, there, *fields[key])
        elif there != AUTO and not (key in harmless and harmless[key] in (None, there)):
            problem = f"{path}: {full} is {json.dumps(there)}, and nothing in training says that"
            yield ConfigIssue("config", KEY, problem, "remove it from the file")
