"""The `training` section of supervised fine-tuning, with or without a teacher's signals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from easydistill.config.base import PositiveInt
from easydistill.config.training import TrainerConfig


class TrainingConfig(TrainerConfig):
    """Supervised fine-tuning of the student. Defaults follow the paper's recipes (section 2.2, Code 1)."""

    per_device_train_batch_size: PositiveInt = 1
    """Rows (packs with `packing`) per device and micro-batch."""
    packing: bool = False
    """Put several rows into one sequence of `max_length`; neither attention nor positions cross between rows. Before
    the first step this is checked with the student itself, and an architecture whose packed rows see each other (LFM2,
    Mamba, gpt-oss, and all with convolutions, recurrent states or positions that are counted otherwise) is refused."""
    group_by_length: bool = True
    """Batch rows of similar length, to save padding. Off with `packing`."""
    loss_chunk_bytes: Annotated[PositiveInt, Field(ge=1 << 20)] | None = None
    """Bytes of logits that the loss holds at once; they are computed slice by slice. Unset: 64 MiB on a CPU, and 512
    MiB on a GPU, which needs larger slices to be busy."""

    recorded_for_none: ClassVar[Mapping[str, Any]] = {"loss_chunk_bytes": 64 << 20}
