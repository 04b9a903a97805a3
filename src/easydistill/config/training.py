"""The `training` section, in Hugging Face's names.

Names that the installed transformers has dropped are translated in `methods/shared/compat.py`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from easydistill.config.base import (
    NonEmptyStr,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ProperShare,
    Section,
    Seed,
    Share,
    share_or_count,
)
from easydistill.config.location import checked_location

Part = Literal["language", "connector", "vision"]
PARTS: tuple[Part, ...] = ("language", "connector", "vision")
"""What a model that sees images is made of."""


def _in_order(parts: list[Part]) -> list[Part]:
    return [part for part in PARTS if part in parts]


class LoraConfig(Section):
    """Low-rank adapters (PEFT) instead of full fine-tuning; merged into the student when it is saved."""

    r: PositiveInt = 16
    """Rank."""
    alpha: PositiveFloat = 32.0
    """Scale; the adapters' output is multiplied by alpha / r."""
    dropout: ProperShare = 0.0
    """Dropout on the adapters' input."""
    target_modules: Annotated[list[NonEmptyStr], Field(min_length=1)] | Literal["all-linear"] = "all-linear"
    """The layers that get adapters."""


class TrainerConfig(Section):
    """What all training methods share. Defaults follow the paper's recipes (section 2.2, Code 1)."""

    runtime_only: ClassVar[frozenset[str]] = frozenset(
        {"output_dir", "logging_steps", "save_steps", "save_total_limit", "dataloader_num_workers"}
    )

    output_dir: Annotated[NonEmptyStr, AfterValidator(checked_location)] | None = None
    """Run directory, as in EasyDistill 1; the trained model is in `student/` inside it."""
    num_train_epochs: PositiveFloat = 3.0
    """Passes over the training rows."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimiser steps, regardless of `num_train_epochs`."""
    per_device_train_batch_size: PositiveInt = 1
    """Rows per device and micro-batch."""
    gradient_accumulation_steps: PositiveInt = 8
    """Micro-batches per optimiser step."""
    learning_rate: PositiveFloat = 2e-5
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.05
    """AdamW's decoupled weight decay."""
    adam_beta1: ProperShare = 0.9
    """AdamW's β₁."""
    adam_beta2: ProperShare = 0.999
    """AdamW's β₂."""
    adam_epsilon: PositiveFloat = 1e-8
    """AdamW's ε."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients are clipped to this norm; 0 turns clipping off."""
    warmup_ratio: Share = 0.1
    """Share of the steps over which the learning rate rises to its peak."""
    warmup_steps: Annotated[NonNegativeFloat, AfterValidator(share_or_count)] | None = None
    """Number of warm-up steps, or below 1 their share of all steps; overrides `warmup_ratio`."""
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "constant",
        "constant_with_warmup",
        "polynomial",
        "inverse_sqrt",
        "cosine_with_restarts",
    ] = "cosine"
    """Learning-rate schedule after the warm-up."""
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd"] = (
        "adamw_torch_fused"
    )
    """Optimiser. `adamw_8bit` (torchao) keeps AdamW's two moments in 2 bytes a weight instead of 8; `paged_adamw_8bit`
    (bitsandbytes) too, and moves them to the CPU's memory where the GPU's is short. Both need the extra `optim`."""
    max_length: PositiveInt = 1024
    """Longest training row, in tokens. A longer row loses the end of its answer; the report says how many were cut. A
    student with fewer positions ends rows where it ends itself."""
    bf16: bool | Literal["auto"] = "auto"
    """Compute in bfloat16 (weights and optimiser state stay as they are); `auto`: where the device is fast in it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: uses less memory, is about a third slower."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights."""
    train_parts: Annotated[list[Part], Field(min_length=1), AfterValidator(_in_order)] | None = None
    """The parts of a student that sees images that are trained: its language model, its connector (which turns what is
    seen into what the language model reads), its vision tower. Others stay as they are. By default `language` and
    `connector`; with `lora`, whose adapters are in the listed parts alone, `language`."""
    seed: Seed = 42
    """Seed of data order, dropout and adapter weights."""
    logging_steps: PositiveInt = 10
    """Steps between entries in `metrics.jsonl` and on screen."""
    save_steps: PositiveInt = 500
    """Steps between checkpoints. A killed run resumes from the last one and ends with the same weights."""
    save_total_limit: PositiveInt = 1
    """Number of checkpoints to keep."""
    dataloader_num_workers: NonNegativeInt = 0
    """Worker processes that prepare batches; 0 for none."""

    @property
    def learns_of_text(self) -> bool:
        """Whether a row without images teaches a student that sees anything: whether its language model is trained."""
        return self.train_parts is None or "language" in self.train_parts
