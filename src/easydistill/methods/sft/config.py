"""The `training` section of supervised fine-tuning, with or without a teacher's signals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from easydistill.config.base import PositiveInt, Unfit
from easydistill.config.training import TrainerConfig


class TrainingConfig(TrainerConfig):
    """Supervised fine-tuning of the student. Defaults follow the paper's recipes (section 2.2, Code 1)."""

    per_device_train_batch_size: PositiveInt = 1
    """Rows (packs with `packing`) per device and micro-batch."""
    max_tokens_per_batch: PositiveInt | None = None
    """Tokens per device and micro-batch, padding included, instead of a number of rows: short rows go together in large
    batches, long ones in small batches. At least `max_length`. In place of `per_device_train_batch_size`."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """Number type of the weights in training. In bfloat16 weights and gradients take half of the memory; updates too
    small for it are rounded up or down at random, so that they count on average. That needs `optim: "adamw_8bit"`; with
    `lora`, whose adapters stay float32, any optimiser does."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the student's layers (torch.compile), which takes up to a minute before the first step and makes the
    steps faster; `auto`: on a GPU, for trainings of at least 1,000 micro-batches."""
    packing: bool = False
    """Put several short rows into one sequence of `max_length`, without letting one see another. Whether the student
    can do that is checked with a tiny model of its architecture before a teacher is asked, and with the student itself
    before the first step. Architectures that cannot (LFM2, Mamba, gpt-oss, and all with convolutions, recurrent states
    or positions that are counted otherwise) are refused."""
    group_by_length: bool = True
    """Batch rows of similar length, to save padding. Off with `packing`."""
    loss_chunk_bytes: Annotated[PositiveInt, Field(ge=1 << 20)] | None = None
    """The output layer's scores for all tokens of the vocabulary (logits) are computed slice by slice; bytes of a
    slice. Unset: 64 MiB on a CPU, and 512 MiB on a GPU, which needs larger slices to be busy."""

    cache_image_features: Literal["auto"] | bool = "auto"
    """Compute what the vision tower makes of an image once, and keep it in `features/` of the run directory, which may
    be deleted after the training. It needs a tower that is not trained (`train_parts`) and not random. `auto`: where
    that is so, images are seen more than once, and the disk has room; `true`: else the run is refused. On a CPU the
    student is the same, bit for bit."""

    runtime_only: ClassVar[frozenset[str]] = TrainerConfig.runtime_only | {"cache_image_features"}
    recorded_for_none: ClassVar[Mapping[str, Any]] = {"loss_chunk_bytes": 64 << 20}

    @property
    def trains_connector(self) -> bool:
        """Whether the connector of a student that sees is trained."""
        return self.lora is None if self.train_parts is None else "connector" in self.train_parts

    @property
    def keeps_features(self) -> bool:
        """Whether features of images are kept, as far as the config tells."""
        if self.cache_image_features is False or "vision" in (self.train_parts or ()):
            return False
        return self.cache_image_features is True or self.max_steps is not None or self.num_train_epochs > 1

    @model_validator(mode="after")
    def _weights_can_learn(self) -> Self:
        if self.weights == "float32":
            return self
        if self.lora is None and self.optim != "adamw_8bit":
            raise Unfit(
                f"bfloat16 weights do not learn with {self.optim}, which rounds small updates away",
                'set training.optim="adamw_8bit" or training.lora, or leave training.weights at float32',
            )
        if self.bf16 is False:
            raise Unfit(
                "bfloat16 weights are computed with in bfloat16, but training.bf16 is false",
                "remove training.bf16, or leave training.weights at float32",
            )
        return self

    @model_validator(mode="after")
    def _features_last(self) -> Self:
        if self.cache_image_features is True and "vision" in (self.train_parts or ()):
            raise Unfit(
                "features of images change with the vision tower, which training.train_parts trains",
                'remove "vision" from training.train_parts, or training.cache_image_features',
            )
        return self

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        budget = self.max_tokens_per_batch
        if budget is None:
            return self
        if budget < self.max_length:
            raise Unfit(
                f"max_tokens_per_batch ({budget}) is less than one row of max_length ({self.max_length}) tokens",
                "raise training.max_tokens_per_batch, or lower training.max_length",
            )
        if self.per_device_train_batch_size != 1:
            raise Unfit(
                "per_device_train_batch_size and max_tokens_per_batch both say how large a micro-batch is",
                "remove one of the two",
            )
        return self
