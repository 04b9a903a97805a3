"""What a training holds in memory, from the student's shape and the `training` section, before anything is loaded.

    weights + their copies in bfloat16 + gradients + optimiser state + activations + the output layer's slices

Counted for decoders of the Llama kind as transformers runs them: per layer and token, what autograd keeps for the
backward pass. Others have about the same. A compiled layer keeps less. Peaks measured on a CPU are within a fifth of it
(`tests/integration/test_memory.py`).

Shapes: D hidden width, K width of keys, F width of the MLP, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from easydistill.config.training import LoraConfig, TrainerConfig
from easydistill.engine.devices import PROCESS
from easydistill.methods.shared.outlook import FLAT_LONGEST, Batch, Steps
from easydistill.models.size import ModelShape

GB = 10**9
_STATE_BYTES = {"adamw_8bit": 2.1, "paged_adamw_8bit": 2.1, "adafactor": 0.0, "sgd": 0.0}
"""Optimiser state per weight, where it is not AdamW's two float32 moments."""
_AVAILABLE = 0.95
"""Share of a device's memory that a training can fill; the rest goes to the driver and to fragments."""
_SLICES_BYTES = 1 << 30
"""Of slices of logits where a GPU decides how large they are."""
_CPU_SLICE = 64 << 20
"""Of one buffer of a slice where a CPU decides."""
_TILE_ROWS, _TILE_WIDTH = 4096, 32_768
"""Tokens and vocabulary of a tile of TRL's output layer (`trl/kernels/chunked_logprob.py` of TRL 1.16)."""
_TILE_TORCH = 36
"""Bytes of a value of a tile without Triton: the code of TRL's backward pass holds 29, measured were 36."""
ROWS = Steps()


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
    process: int = 0
    """On a CPU: the interpreter, the libraries, and what they keep."""
    trained: int = 0
    """Weights that are trained."""
    answers: int = 0
    """By how much the whole weights, with which answers are written between steps, exceed what a step takes for itself:
    copies, activations, loss and exchange."""

    @property
    def total(self) -> int:
        return self.process + self.weights + self.gradients + self.optimiser + self.of_a_step + self.answers

    @property
    def of_a_step(self) -> int:
        """What is free between steps."""
        return self.copies + self.activations + self.loss + self.exchange

    @property
    def named(self) -> dict[str, int]:
        """The bytes by what they are for, in words; nothing that takes none."""
        found = {
            "libraries": self.process,
            "weights": self.weights + self.copies,
            "gradients": self.gradients,
            "optimiser": self.optimiser,
            "activations": self.activations,
            "output layer": self.loss,
            "exchange": self.exchange,
            "writing answers": self.answers,
        }
        return {name: size for name, size in found.items() if size}

    def parts(self) -> str:
        """The larger parts in words."""
        return ", ".join(f"{name} {size / GB:.1f}" for name, size in self.named.items() if size >= 0.05 * self.total)


def training_memory(
    shape: ModelShape, training: TrainerConfig, *, bf16: bool, steps: Steps = ROWS, alone: bool = True
) -> TrainingMemory:
    """The memory of a training step at its peak.

    Args:
        bf16: whether it computes in bfloat16.
        steps: what a micro-batch is; by default rows of `max_length`, on a GPU.
        alone: no other process shares the training; else gradients have their place throughout.
    """
    each = 2 if getattr(training, "weights", "float32") == "bfloat16" else 4
    computed = 2 if bf16 or each == 2 else 4
    full = training.lora is None
    trained = shape.parameters if training.lora is None else _adapter_parameters(shape, training.lora)
    trained_each = each if full else 4
    head = shape.vocabulary * shape.hidden
    body = shape.parameters - head * (1 if shape.tied else 2)
    batch = steps.batch(training)
    layer = _layer_bytes(shape, each, computed, batch, steps)
    # The embedding, the final norm, and the gradient of its output.
    ends = 4 * each * shape.hidden * batch.tokens
    whole = shape.layers * (each * shape.hidden * batch.tokens if training.gradient_checkpointing else layer)
    # While one layer's gradients are computed, they take about as much as it has kept.
    passing = (2 if training.gradient_checkpointing else 1) * layer + ends
    loss = _loss_bytes(shape, training, each, computed, batch, steps)
    gradients = trained_each * trained
    if alone and training.gradient_accumulation_steps == 1:
        # They are made while the activations go: the peak is where the backward pass begins, or where it ends.
        summed = trained_each * head if full and shape.tied else 0
        end = gradients + summed + passing
        whole, passing, loss, gradients = _later(whole, passing, loss, gradients, end)
    state = _STATE_BYTES.get(training.optim, 8.0)
    embeddings = head if training.optim == "paged_adamw_8bit" and full else 0
    found = TrainingMemory(
        weights=each * shape.parameters + (0 if full else 4 * trained),
        copies=2 * body if computed < each else 0,
        gradients=gradients,
        # bitsandbytes keeps the moments of embeddings in float32.
        optimiser=round(state * (trained - embeddings) + 8 * embeddings),
        activations=whole + passing,
        loss=loss,
        process=PROCESS if steps.on == "cpu" else 0,
        trained=trained,
    )
    # Gradients that are not summed up are gone when answers are written.
    free = found.of_a_step + (gradients if alone and training.gradient_accumulation_steps == 1 else 0)
    return replace(found, answers=max(0, _writing_bytes(shape, training, each, computed, steps) - free))


def _later(whole: int, passing: int, loss: int, gradients: int, end: int) -> tuple[int, int, int, int]:
    """(activations, what passes, loss, gradients) at that end of a backward pass that holds more."""
    return (whole, passing, loss, 0) if whole + passing + loss >= end else (0, passing, 0, end - passing)


def _layer_bytes(shape: ModelShape, each: int, computed: int, batch: Batch, steps: Steps) -> int:
    """What a layer keeps: the residual stream in the weights' dtype, inputs of products in that of the computation."""
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
    # PyTorch's fused attention keeps no probabilities; ours of short rows on a CPU does.
    flat = steps.on == "cpu" and steps.of == "rows" and batch.longest <= FLAT_LONGEST
    probabilities = computed * shape.heads * batch.pairs if flat else 0
    return batch.tokens * (norms + attention + 4 * computed * mlp) + probabilities


def _loss_bytes(
    shape: ModelShape, training: TrainerConfig, each: int, computed: int, batch: Batch, steps: Steps
) -> int:
    """Slices of logits; the output layer's gradient in float32, what is added to it, and the layer's copy."""
    head = shape.vocabulary * shape.hidden
    copy = 2 * head if computed < each else 0
    if steps.loss == "none":
        return 0
    if steps.loss == "tiles":
        made = 4 * head if training.lora is None else 0
        return _tile_bytes(shape, computed, batch, steps) + made
    slices = _slice_bytes(shape, training, computed, batch, steps)
    if training.lora is not None:
        return slices + copy
    return slices + copy + 4 * head + (computed * head if computed == 2 else 0)


def _slice_bytes(shape: ModelShape, training: TrainerConfig, computed: int, batch: Batch, steps: Steps) -> int:
    """Of `kernels/head_pass.py`: logits, exact ones and log-probabilities; a distillation also has them once more."""
    chunk = getattr(training, "loss_chunk_bytes", None)
    kept = 8 + computed + (8 if steps.loss == "distribution" else 0)
    if chunk is None and steps.on == "gpu":
        return min(_SLICES_BYTES, kept * batch.learned * shape.vocabulary)
    rows = max(1, (chunk or _CPU_SLICE) // (4 * shape.vocabulary))
    return kept * min(rows, max(1, batch.learned)) * shape.vocabulary


def _tile_bytes(shape: ModelShape, computed: int, batch: Batch, steps: Steps) -> int:
    """Of TRL's tiles: Triton's kernels overwrite the logits of learned tokens; without them every position is scored,
    prompts and padding too, and a backward pass holds several copies."""
    cpu = steps.on == "cpu"
    rows = min(max(1, batch.tokens if cpu else batch.learned), _TILE_ROWS)
    tile = rows * min(shape.vocabulary, _TILE_WIDTH)
    return tile * (computed + (_TILE_TORCH if cpu else 0)) + 4 * _TILE_WIDTH * shape.hidden


def _writing_bytes(shape: ModelShape, training: TrainerConfig, each: int, computed: int, steps: Steps) -> int:
    """While the student writes answers: its keys and values, its weights as they are computed with, and logits."""
    rows, length = steps.written(training)
    if not rows:
        return 0
    cache = rows * length * shape.layers * 2 * shape.key_width * computed
    logits = rows * shape.vocabulary * (computed + 3 * 4)
    copies = computed * shape.parameters if computed < each or steps.on == "cpu" else 0
    return cache + logits + copies


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


def fits(memory: TrainingMemory, available: int) -> bool:
    """Whether a training fits into a device of so many bytes."""
    return memory.total <= _AVAILABLE * available


def memory_lines(
    shape: ModelShape | None,
    training: TrainerConfig,
    device: tuple[int, str] | None,
    *,
    bf16: bool,
    steps: Steps = ROWS,
) -> list[str]:
    """A line if a training does not fit into a device, with what it holds and the settings with which it would."""
    if shape is None or device is None:
        return []
    available, where = device
    needed = training_memory(shape, training, bf16=bf16, steps=steps)
    if fits(needed, available):
        return []
    problem = f"training needs about {needed.total / GB:.0f} GB ({needed.parts()}); {where} has {available / GB:.0f} GB"
    found = remedy(shape, training, available, bf16=bf16, steps=steps)
    if found is None:
        return [f"{problem}; none of our settings makes it fit: take a smaller student, or several GPUs"]
    words, less = found
    return [f"{problem}; with {words} it needs about {less.total / GB:.0f} GB"]


def remedy(
    shape: ModelShape, training: TrainerConfig, available: int, *, bf16: bool, steps: Steps = ROWS
) -> tuple[str, TrainingMemory] | None:
    """The first settings with which a training fits, from those that cost least, and its memory with them."""
    for changes in _changes(training):
        changed = training.model_copy(update=changes)
        memory = training_memory(shape, changed, bf16=bf16, steps=steps)
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
