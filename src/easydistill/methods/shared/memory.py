"""What a training holds in memory, from the student's shape and the `training` section, before anything is loaded.

    weights + their copies in bfloat16 + gradients + optimiser state + activations + the output layer's slices

Counted for decoders of the Llama kind as transformers runs them: per layer and token, what autograd keeps for the
backward pass. Others have about the same. A compiled layer keeps less. Peaks measured on a CPU are within a fifth of it
(`tests/integration/test_memory.py`).

Shapes: D hidden width, K width of keys, F width of the MLP, V vocabulary, L layers.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from easydistill.config.training import LoraConfig, TrainerConfig
from easydistill.models.size import ModelShape

GB = 10**9
GPU = "the GPU"
"""Whose memory it is, in words."""
_STATE_BYTES = {"adamw_8bit": 2.1, "paged_adamw_8bit": 2.1, "adafactor": 0.0, "sgd": 0.0}
"""Optimiser state per weight, where it is not AdamW's two float32 moments."""
_AVAILABLE = 0.95
"""Share of a device's memory that a training can fill; the rest goes to the driver and to fragments."""
_SLICES_BYTES = 1 << 30
"""Of slices of logits where the device decides how large they are: what a GPU takes; a CPU takes less."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes, by what they are for."""

    weights: int
    copies: int
    """Of float32 weights, in bfloat16 for the computation."""
    gradients: int
    optimiser: int
    activations: int
    loss: int
    exchange: int = 0
    """What processes exchange: buckets of gradients, and weights gathered for as long as they are computed with."""
    answers: int = 0
    """By how much the whole weights, with which answers are written between steps, exceed what a step takes for itself:
    copies, activations, loss and exchange."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimiser + self.of_a_step + self.answers

    @property
    def of_a_step(self) -> int:
        """What is free between steps."""
        return self.copies + self.activations + self.loss + self.exchange

    def parts(self) -> str:
        """The larger parts in words."""
        named = {
            "weights": self.weights + self.copies,
            "gradients": self.gradients,
            "optimiser": self.optimiser,
            "activations": self.activations,
            "output layer": self.loss,
            "exchange": self.exchange,
            "whole weights for answers": self.answers,
        }
        return ", ".join(f"{name} {size / GB:.1f}" for name, size in named.items() if size >= 0.05 * self.total)


def training_memory(
    shape: ModelShape, training: TrainerConfig, *, bf16: bool, sequences_per_row: int = 1
) -> TrainingMemory:
    """The memory of a training step at its peak.

    Args:
        bf16: whether it computes in bfloat16.
        sequences_per_row: 2 for pairs.
    """
    each = 2 if getattr(training, "weights", "float32") == "bfloat16" else 4
    computed = 2 if bf16 or each == 2 else 4
    trained = shape.parameters if training.lora is None else _adapter_parameters(shape, training.lora)
    trained_each = each if training.lora is None else 4
    head = shape.vocabulary * shape.hidden
    body = shape.parameters - head * (1 if shape.tied else 2)
    tokens = tokens_per_batch(training) * sequences_per_row
    state = _STATE_BYTES.get(training.optim, 8.0)
    embeddings = head if training.optim == "paged_adamw_8bit" and training.lora is None else 0
    return TrainingMemory(
        weights=each * shape.parameters + (0 if training.lora is None else 4 * trained),
        copies=2 * body if computed < each else 0,
        gradients=trained_each * trained,
        # bitsandbytes keeps the moments of embeddings in float32.
        optimiser=round(state * (trained - embeddings) + 8 * embeddings),
        activations=tokens * _activation_bytes(shape, each, computed, training.gradient_checkpointing),
        loss=_loss_bytes(training, head, each, computed),
    )


def tokens_per_batch(training: TrainerConfig) -> int:
    """Tokens of the largest micro-batch that `training` allows."""
    budget = getattr(training, "max_tokens_per_batch", None)
    return int(budget or training.per_device_train_batch_size * training.max_length)


def _activation_bytes(shape: ModelShape, each: int, computed: int, checkpointing: bool) -> int:
    """Bytes per token: the residual stream in the weights' dtype, inputs of products in that of the computation."""
    width, keys, mlp = shape.hidden, shape.key_width, shape.intermediate
    if each == computed == 4:
        # A norm keeps its input, the input over its norm, and its output.
        norms = 2 * 12 * width
    elif each == 4:
        # Instead of its output, the copies that q, k, v, gate and up are each given.
        norms = 2 * 8 * width + 5 * 2 * width
    else:
        # The input as float32, the input over its norm, and its output.
        norms = 2 * 8 * width
    attention = computed * (3 * width + 2 * keys)
    layer = norms + attention + 4 * computed * mlp
    # The embedding, the final norm, and the gradient of its output.
    ends = 4 * each * width
    # While one layer's gradients are computed, they take about as much as it has kept.
    backward = layer
    if checkpointing:
        return shape.layers * each * width + layer + backward + ends
    return shape.layers * layer + backward + ends


def _loss_bytes(training: TrainerConfig, head: int, each: int, computed: int) -> int:
    """Three slices of logits; the output layer's gradient in float32, what is added to it, and the layer's copy."""
    chunk = getattr(training, "loss_chunk_bytes", None)
    slices = _SLICES_BYTES if chunk is None else 3 * chunk
    copy = 2 * head if computed < each else 0
    if training.lora is not None:
        return slices + copy
    return slices + copy + 4 * head + (computed * head if computed == 2 else 0)


def _adapter_parameters(shape: ModelShape, lora: LoraConfig) -> int:
    """Parameters of adapters on all linear layers, or on those that are named, if their names are the usual ones."""
    width, keys, mlp = shape.hidden, shape.key_width, shape.intermediate
    sides = {
        "q_proj": (width, width),
        "k_proj": (width, keys),
        "v_proj": (width, keys),
        "o_proj": (width, width),
        "gate_proj": (width, mlp),
        "up_proj": (width, mlp),
        "down_proj": (mlp, width),
    }
    wanted = sides if lora.target_modules == "all-linear" else {name: sides.get(name) for name in lora.target_modules}
    return shape.layers * lora.r * sum(sum(pair) for pair in wanted.values() if pair is not None)


# --- does it fit? ------------------------------------------------------------------------------------------------


def device_memory() -> tuple[int, str] | None:
    """(bytes, what has them): the first GPU, else this machine; None if they cannot be told."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory), GPU
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine"
    except (AttributeError, ValueError, OSError):
        return None


def fits(memory: TrainingMemory, available: int) -> bool:
    """Whether a training fits into a device of so many bytes."""
    return memory.total <= _AVAILABLE * available


def memory_lines(
    shape: ModelShape | None,
    training: TrainerConfig,
    device: tuple[int, str] | None,
    *,
    bf16: bool,
    sequences_per_row: int = 1,
) -> list[str]:
    """A line if a training does not fit into a device, with what it holds and the settings with which it would."""
    if shape is None or device is None:
        return []
    available, where = device
    needed = training_memory(shape, training, bf16=bf16, sequences_per_row=sequences_per_row)
    if fits(needed, available):
        return []
    problem = f"training needs about {needed.total / GB:.0f} GB ({needed.parts()}); {where} has {available / GB:.0f} GB"
    found = remedy(shape, training, available, bf16=bf16, sequences_per_row=sequences_per_row)
    if found is None:
        return [f"{problem}; none of our settings makes it fit: take a smaller student, or several GPUs"]
    words, less = found
    return [f"{problem}; with {words} it needs about {less.total / GB:.0f} GB"]


def remedy(
    shape: ModelShape, training: TrainerConfig, available: int, *, bf16: bool, sequences_per_row: int = 1
) -> tuple[str, TrainingMemory] | None:
    """The first settings with which a training fits, from those that cost least, and its memory with them."""
    for changes in _changes(training):
        changed = training.model_copy(update=changes)
        memory = training_memory(shape, changed, bf16=bf16, sequences_per_row=sequences_per_row)
        if fits(memory, available):
            return ", ".join(f"training.{name}={_shown(value)}" for name, value in changes.items()), memory
    return None


def _changes(training: TrainerConfig) -> Iterator[dict[str, Any]]:
    """Settings to try: recomputing costs time alone, 8-bit moments hardly anything, bfloat16 weights some precision."""
    full = training.lora is None
    narrow = "weights" in type(training).model_fields
    checkpointing: dict[str, Any] = {} if training.gradient_checkpointing else {"gradient_checkpointing": True}
    small_state: dict[str, Any] = {"optim": "adamw_8bit"} if full and training.optim.startswith("adamw_torch") else {}
    low: dict[str, Any] = {"weights": "bfloat16", **({"optim": "adamw_8bit"} if full else {})} if narrow else {}
    adapters: dict[str, Any] = {"lora": LoraConfig()} if full else {}
    base = {"weights": "bfloat16"} if narrow else {}
    tried: list[dict[str, Any]] = [
        checkpointing,
        small_state,
        {**checkpointing, **small_state},
        {**checkpointing, **low},
        {**checkpointing, **low, **_smaller_batch(training)},
        {**checkpointing, **adapters, **base},
        {**checkpointing, **adapters, **base, **_smaller_batch(training)},
    ]
    yield from (changes for changes in tried if changes)


def _smaller_batch(training: TrainerConfig) -> dict[str, Any]:
    """A micro-batch of one row, with as many rows a step."""
    if getattr(training, "max_tokens_per_batch", None) is not None:
        return {"max_tokens_per_batch": training.max_length}
    rows = training.per_device_train_batch_size
    if rows == 1:
        return {}
    return {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": rows * training.gradient_accumulation_steps,
    }


def _shown(value: Any) -> str:
    if isinstance(value, LoraConfig):
        return "{}"
    return str(value).lower() if isinstance(value, bool) else str(value)
