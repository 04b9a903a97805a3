"""Low-rank adapters (LoRA) on a student, as `training.lora` asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from easydistill.config.training import TrainerConfig
from easydistill.errors import ConfigError, ConfigIssue


def with_adapters(model: Any, config: TrainerConfig) -> Any:
    """`model` with new low-rank adapters, drawn from the seed, where the config asks for them; else as it is.

    Raises:
        ConfigError: the output layer is to have adapters.
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
    """What PEFT is told of the adapters that the config asks for; None where it asks for none.

    Raises:
        ConfigError: the output layer is to have adapters.
    """
    if config.lora is None:
        return None
    import peft

    _check_targets(model, config.lora.target_modules)
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=config.lora.target_modules,
    )


def _check_targets(model: Any, targets: Sequence[str]) -> None:
    """Make sure that no adapter goes on the output layer, or on embeddings whose weights that shares.

    Losses multiply with the layer's weight, slice by slice, and go round its forward: adapters would stay untrained.
    """
    if targets == "all-linear":
        return
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    used = [head, embeddings] if head.weight is embeddings.weight else [head]
    names = [name for name, module in model.named_modules() if any(module is layer for layer in used)]
    for target in targets:
        if any(f".{name}".endswith(f".{target}") for name in names):
            problem = f"adapters on {target}, the output layer, would not be trained"
            mend = f'remove "{target}", or use "all-linear", which leaves that layer out'
            raise ConfigError(ConfigIssue("config", "training.lora.target_modules", problem, mend))
