"""Micro-batches of about equally many tokens, padding included, instead of equally many rows.

    rows · (longest row)  ≤  budget

In: the lengths of all items (rows, or packs). Out: for every epoch the same number of micro-batches, determined by the
lengths, seed and epoch alone. The number must not change between epochs: transformers' Trainer counts the steps of the
whole training, and those that a resumed one skips, from it.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, Sampler

from easydistill.config.training import TrainerConfig
from easydistill.methods.sft.batching import MEGABATCHES

WINDOW_BATCHES = 64
"""Items are sorted by length within windows of about this many micro-batches, and of no less than eight steps."""

Batch = tuple[int, ...]
"""Indices of the items of a micro-batch; none for a rank that has nothing left to do in a step."""


class TokenBatchSampler(Sampler[Batch]):
    """Every epoch's micro-batches. No batch is larger than the budget, but for a single item that is.

    Args:
        lengths: tokens that each item takes in a batch.
        budget: tokens of a micro-batch, padding included.
        window: number of items within which similar lengths are grouped; 0 only shuffles.
        seed: seed of the shuffles.
        batches: at least so many micro-batches will be drawn in all; with `epochs`, how far ahead they are counted.
        epochs: at least so many epochs will begin.
        ranks: processes that share each epoch's batches.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        budget: int,
        window: int,
        seed: int,
        *,
        epochs: int = 1,
        batches: int = 0,
        ranks: int = 1,
    ) -> None:
        self._lengths = lengths
        self._budget = budget
        self._window = window
        self._seed = seed
        self._epoch = 0
        self._count = self._most(epochs, batches, ranks)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        generator = self._generator(self._epoch)
        batches = self._split(self._filled(generator))
        generator.shuffle(batches)
        return iter(tuple(batch) for batch in batches)

    def _generator(self, epoch: int) -> random.Random:
        return random.Random(f"{self._seed}:{epoch}")

    def _most(self, epochs: int, batches: int, ranks: int) -> int:
        """The most batches that any epoch needs, rounded up to a multiple of `ranks`."""
        most = epoch = 0
        while epoch < epochs or most * epoch < batches:
            most = max(most, len(self._filled(self._generator(epoch))))
            epoch += 1
        return math.ceil(most / ranks) * ranks

    def _filled(self, generator: random.Random) -> list[list[int]]:
        """Batches filled one after the other, in shuffled windows of items from the longest to the shortest."""
        order = list(range(len(self._lengths)))
        generator.shuffle(order)
        batches: list[list[int]] = []
        window = self._window or len(order)
        for start in range(0, len(order), window):
            items = order[start : start + window]
            if self._window:
                items.sort(key=self._lengths.__getitem__, reverse=True)
            batches += self._fill(items)
        return batches

    def _fill(self, items: Sequence[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        width = 0
        for item in items:
            wider = max(width, self._lengths[item])
            if batch and wider * (len(batch) + 1) > self._budget:
                yield batch
                batch, wider = [], self._lengths[item]
            batch.append(item)
            width = wider
        yield batch

    def _split(self, batches: list[list[int]]) -> list[list[int]]:
        """Exactly `len(self)` batches: those with the most items are halved until there are enough.

        Where all have a single item, as many empty ones as are missing. Of a number that ranks cannot share evenly
        accelerate would make one that they can, with batches from the epoch's beginning: rows that are learned twice.
        """
        heap = [(-len(batch), at, batch) for at, batch in enumerate(batches)]
        heapq.heapify(heap)
        for at in range(len(batches), self._count):
            size, first, batch = heapq.heappop(heap)
            half = -size // 2
            heapq.heappush(heap, (-half, first, batch[:half]))
            heapq.heappush(heap, (half + size, at, batch[half:]))
        return [batch for _, _, batch in sorted(heap, key=lambda entry: entry[1])]


def token_batch_sampler(
    lengths: Sequence[int], budget: int, config: TrainerConfig, *, grouped: bool, ranks: int
) -> TokenBatchSampler:
    """The sampler for a `training` section with a budget of tokens."""
    mean = max(1.0, sum(lengths) / max(1, len(lengths)))
    window_batches = max(WINDOW_BATCHES, MEGABATCHES * config.gradient_accumulation_steps * ranks)
    window = math.ceil(window_batches * max(1.0, budget / mean))
    steps = config.max_steps or 0
    return TokenBatchSampler(
        lengths,
        budget,
        window if grouped else 0,
        config.seed,
        epochs=1 if config.max_steps else math.ceil(config.num_train_epochs),
        batches=steps * config.gradient_accumulation_steps * ranks,
        ranks=ranks,
    )


class BatchDataset(Dataset[list[Any]]):
    """The items of a whole micro-batch, by their indices."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, batch: Batch) -> list[Any]:
        return [self._items[index] for index in batch]
