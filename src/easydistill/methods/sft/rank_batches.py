"""Micro-batches for processes that train together: each step's rows, split over its ranks.

In: micro-batches of all ranks' rows together, in an order that knows nothing of ranks. Out: the same rows in the same
steps, each in one rank's part. No row is repeated to make the parts even: a rank that gets none computes one that it
does not learn from, because the others wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler

from easydistill.methods.sft.batching import EpochSampler
from easydistill.methods.sft.token_batches import Batch


class RankBatchSampler(Sampler[Batch]):
    """Every epoch's micro-batches, the parts of each step one after another: rank r of R takes each R-th from r on.

    Args:
        order: of the items.
        size: items of a step's micro-batches together.
        ranks: processes that share them.
    """

    def __init__(self, order: EpochSampler, size: int, ranks: int) -> None:
        self._order = order
        self._size = size
        self._ranks = ranks

    def set_epoch(self, epoch: int) -> None:
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self._order) // self._size) * self._ranks

    def __iter__(self) -> Iterator[Batch]:
        order = list(self._order)
        for start in range(0, len(order), self._size):
            step = order[start : start + self._size]
            for rank in range(self._ranks):
                yield tuple(step[len(step) * rank // self._ranks : len(step) * (rank + 1) // self._ranks])
