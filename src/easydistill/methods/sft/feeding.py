"""What the trainer is fed: items (rows, or the rows of packs) as micro-batches, padded as this training needs them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from easydistill.methods.distil.row_loss import Distillation
from easydistill.methods.sft.batching import RowDataset, TokenRow, collate, epoch_sampler, unlearned
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.sft.flat_batches import collate_short, is_short
from easydistill.methods.sft.rank_batches import RankBatchSampler
from easydistill.methods.sft.token_batches import BatchDataset, token_batch_sampler
from easydistill.methods.sft.varlen import collate_flat
from easydistill.methods.shared.compiling import LENGTH_MULTIPLE

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

_OF_TEXT = frozenset({"input_ids", "labels", "position_ids", "attention_mask"})


@dataclass(frozen=True)
class Feed:
    """The micro-batches of a training, and what a `FusedTrainer` needs to draw them."""

    items: Sequence[list[TokenRow]]
    """Rows, or the rows of packs."""
    config: TrainingConfig
    pad: int
    """The padding token."""
    distillation: Distillation | None = None
    ranks: int = 1
    """Processes that train together."""
    multiple: int = 1
    """Batches are padded to a multiple of this many tokens."""
    flat: bool = False
    """One sequence of all rows of a micro-batch, for attention by their bounds."""
    unpadded: bool = False
    """One sequence of the rows of a micro-batch if they are short, and what they begin with once."""
    vision: Vision | None = None
    """Of a student that sees images: makes what it is given with a batch's tokens."""

    @cached_property
    def sizes(self) -> list[int]:
        """Tokens of each item."""
        return [sum(len(row) for row in item) for item in self.items]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens that each item takes in a batch."""
        return [math.ceil(size / self.multiple) * self.multiple for size in self.sizes]

    @property
    def same_shape(self) -> bool:
        """Whether all full micro-batches have one shape."""
        return not self.flat and self.config.max_tokens_per_batch is None and len(set(self.lengths)) == 1

    @property
    def expected_batches(self) -> float:
        """About how many micro-batches a process trains on in all."""
        config = self.config
        if config.max_steps is not None:
            return config.max_steps * config.gradient_accumulation_steps
        budget = config.max_tokens_per_batch
        batches = len(self.items) / config.per_device_train_batch_size if budget is None else sum(self.lengths) / budget
        return batches * config.num_train_epochs / self.ranks

    @property
    def passes(self) -> float:
        """About how often each item is trained on."""
        config = self.config
        if config.max_steps is None:
            return config.num_train_epochs
        return self.expected_batches / max(1.0, replace(self, config=_one_pass(config)).expected_batches)

    @property
    def whole_batches(self) -> bool:
        """Whether the data set's items are whole micro-batches."""
        return self.config.max_tokens_per_batch is not None or self.ranks > 1

    @cached_property
    def dataset(self) -> Dataset[Any]:
        return BatchDataset(self.items) if self.whole_batches else RowDataset(self.items)

    @cached_property
    def sampler(self) -> Sampler[Any]:
        grouped = self.config.group_by_length and not self.config.packing
        budget = self.config.max_tokens_per_batch
        if budget is None:
            size = self.config.per_device_train_batch_size * self.ranks
            together = self.config.model_copy(update={"per_device_train_batch_size": size})
            order = epoch_sampler(self.sizes, together, grouped=grouped)
            return order if self.ranks == 1 else RankBatchSampler(order, size, self.ranks)
        # The same batches whether or not layers are compiled, which decides `multiple`: a resumed run skips as many.
        sizes = [math.ceil(size / LENGTH_MULTIPLE) * LENGTH_MULTIPLE for size in self.sizes]
        return token_batch_sampler(sizes, budget, self.config, grouped=grouped, ranks=self.ranks)

    def collate(self, drawn: list[Any]) -> dict[str, Any]:
        """The micro-batch that a data loader draws: items, or one list of them."""
        items = drawn[0] if self.whole_batches else drawn
        if not items:
            # This rank has no row in the step, and computes one with the others.
            batch = self._with_signals(self.items[0:1])
            return unlearned(batch, batch.keys() & self._seen_names)
        return self._with_signals(items)

    def _with_signals(self, items: Sequence[list[TokenRow]]) -> dict[str, Any]:
        extra = self.distillation.collate([row for item in items for row in item]) if self.distillation else {}
        if self._companion is not None and not any(row.images for item in items for row in item):
            items = [*items, [self._companion]]
        return {**self.tokens(items), **extra}

    @cached_property
    def _companion(self) -> TokenRow | None:
        """A short row with an image, which goes with batches of text alone, and of which nothing is learned. Where
        several processes train, one that does not use its vision tower would not take part in what the others wait for;
        where the language model is not trained, a loss of text alone has no gradient."""
        if self.vision is None or (self.ranks == 1 and self.config.learns_of_text):
            return None
        rows = (row for item in self.items for row in item if row.images)
        shortest = min(rows, key=len, default=None)
        if shortest is None:
            return None
        return TokenRow(shortest.id, shortest.ids_T, np.zeros(len(shortest), np.bool_), images=shortest.images)

    @property
    def _seen_names(self) -> frozenset[str]:
        """Names of what a student that sees images is given beside ids."""
        return frozenset() if self.vision is None else self.vision.processor.inputs - _OF_TEXT

    def tokens(self, items: Sequence[list[TokenRow]]) -> dict[str, Any]:
        """A micro-batch without a teacher's signals."""
        if self.flat:
            return collate_flat(items, self.pad, self.config.max_length, self.multiple)
        if self.unpadded and is_short(items):
            return dict(collate_short(items))
        batch: dict[str, Any] = dict(collate(items, self.pad, self.multiple))
        if self.vision is None:
            return batch
        rows = [(row.ids_T, row.images) for item in items for row in item]
        return {**batch, **self.vision.inputs(batch["input_ids"], rows)}

    def shown(self, items: Sequence[list[TokenRow]]) -> dict[str, Any]:
        """A micro-batch as the student's body is given it."""
        return {name: value for name, value in self.tokens(items).items() if name in {"input_ids", *self._seen_names}}

    def first(self) -> dict[str, Any]:
        """The first micro-batch of the first epoch, without a teacher's signals."""
        draw = iter(self.sampler)
        if self.whole_batches:
            # Some may be empty.
            return self.tokens([self.items[index] for index in next(batch for batch in draw if batch)])
        size = min(self.config.per_device_train_batch_size, len(self.items))
        return self.tokens([self.items[next(draw)] for _ in range(size)])


def _one_pass(config: TrainingConfig) -> TrainingConfig:
    return config.model_copy(update={"max_steps": None, "num_train_epochs": 1.0})
