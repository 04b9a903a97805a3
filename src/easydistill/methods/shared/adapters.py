"""Low-rank adapters (LoRA) on a student, as `training.lora` asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from easydistill.config.training import LoraConfig, TrainerConfig
from easydistill.errors import ConfigError, ConfigIssue


def with_adapters(model: Any, config: TrainerConfig) -> Any:
    """`model` with new low-rank adapters, initialised from the seed; without `training.lora`, `model` itself.

    Raises:
        ConfigError: the output layer would get adapters.
    """
    wanted = adapters(model, config)
    if wanted is None:
        return model
    import peft
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        adapted = peft.get_peft_model(model, wanted)
    if config.gradient_checkpointing:
        adapted.enable_input_require_grads()
    return adapted


def adapters(model: Any, config: TrainerConfig) -> Any:
    """PEFT's config of the adapters; None without `training.lora`.

    Raises:
        ConfigError: the output layer would get adapters.
    """
    if config.lora is None:
        return None
    _check_targets(model, config.lora.target_modules)
    return lora_config(config.lora, "CAUSAL_LM")


def lora_config(lora: LoraConfig, task_type: str, **extra: Any) -> Any:
    """A `training.lora` section as PEFT's config; `extra` are further arguments of that class."""
    import peft

    return peft.LoraConfig(
        task_type=task_type,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        **extra,
    )


def _check_targets(model: Any, targets: Sequence[str]) -> None:
    """Refuse adapters on the output layer, and on embeddings that share its weight.

    Losses multiply with that weight slice by slice and bypass the layer's forward, so adapters would stay untrained.
    """
    if targets == "all-linear":
        return
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    used = [head, embeddings] if head.weight is embeddings.weight else [head]
    names = [name for name, module in model.named_modules() if any(module is layer for layer in used)]
    for target in targets:
        if any(f".{name}".endswith(f".{target}") for name in names):
            problem = f"adapters on {target}, the output layer, would not be trained"
            hint = f'remove "{target}", or use "all-linear", which leaves that layer out'
            raise ConfigError(ConfigIssue("config", "training.lora.target_modules", problem, hint))
