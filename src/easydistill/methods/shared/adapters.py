"""Low-rank adapters (LoRA) on a student, as `training.lora` asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from easydistill.config.training import LoraConfig, Part, TrainerConfig
from easydistill.errors import ConfigError, ConfigIssue
from easydistill.methods.shared.sight import lacks_parts
from easydistill.models.multimodal.parts import freeze_others, modules_outside, trained_parts


def with_adapters(model: Any, config: TrainerConfig) -> Any:
    """`model` with new low-rank adapters, initialised from the seed; without `training.lora`, `model` itself.

    Raises:
        ConfigError: as `adapters`.
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

    Of a model that sees images, only parts that are trained get adapters; without any, the others are frozen.

    Raises:
        ConfigError: the output layer would get adapters; or a model of text is to be trained in parts that it lacks.
    """
    parts = parts_to_train(model, config)
    if config.lora is None:
        if parts is not None:
            freeze_others(model, parts)
        return None
    _check_targets(model, config.lora.target_modules)
    if parts is None:
        return lora_config(config.lora, "CAUSAL_LM")
    outside = modules_outside(model, parts)
    check_linear(model, outside, parts)
    return lora_config(config.lora, "CAUSAL_LM", exclude_modules=outside)


def parts_to_train(model: Any, config: TrainerConfig) -> tuple[Part, ...] | None:
    """The parts of a model that are trained, if it has several.

    Raises:
        ConfigError: a model of text is to be trained in parts that it lacks.
    """
    wanted = config.train_parts
    found = trained_parts(model, wanted, adapters=config.lora is not None)
    if found is None and wanted is not None and wanted != ["language"]:
        raise ConfigError(lacks_parts([part for part in wanted if part != "language"]))
    return found


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


def check_linear(model: Any, outside: Sequence[str], parts: Sequence[Part]) -> None:
    """Refuse adapters in parts that have no layer for them (Gemma 3's connector is a bare matrix)."""
    import torch

    left = set(outside)
    if not any(isinstance(module, torch.nn.Linear) for name, module in model.named_modules() if name not in left):
        problem = f"there is no linear layer for adapters in the student's {' and '.join(parts)}"
        hint = 'add "language", or remove training.lora'
        raise ConfigError(ConfigIssue("config", "training.train_parts", problem, hint))


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
