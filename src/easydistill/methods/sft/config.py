"""The `training` section of supervised fine-tuning, with or without a teacher's signals."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from easydistill.config.base import PositiveInt
from easydistill.config.training import TrainerConfig


class TrainingConfig(TrainerConfig):
    """Supervised fine-tuning of the student. Defaults follow the paper's recipes (section 2.2, Code 1)."""

    per_device_train_batch_size: PositiveInt = 1
    """Rows (packs with `packing`) per device and micro-batch."""
    packing: bool = False
    """Put several rows into one sequence of `max_length`; neither attention nor positions cross between rows. This is
    checked before a teacher is asked with a tiny model of the student's architecture, and before the first step with
    the student itself: an architecture whose packed rows see each other (LFM2, Mamba, gpt-oss, and all with
    convolutions, recurrent states or positions that are counted otherwise) is refused."""
    group_by_length: bool = True
    """Batch rows of similar length, to save padding. Off with `packing`."""
    loss_chunk_bytes: Annotated[PositiveInt, Field(ge=1 << 20)] = 64 << 20
    """Bytes of logits that the loss holds at once; they are computed slice by slice."""
