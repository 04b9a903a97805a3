"""The highest of many values: a model's most probable tokens, and the largest disagreements."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

SORTED_WHOLE = 2048
"""Rows up to this length are sorted whole."""

Entry = TypeVar("Entry")


def top(values_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest values of each row and their indices, in descending order; ties go to the lower index.

    `torch.topk` leaves ties undefined, and logits in bfloat16 are often equal. Sorting only the k blocks with the
    highest maxima, which must contain the k highest values, is as fast as `torch.topk`.
    """
    width = values_NV.shape[1]
    k = min(k, width)
    if width <= SORTED_WHOLE:
        ordered = values_NV.sort(dim=1, descending=True, stable=True)
        return ordered.values[:, :k], ordered.indices[:, :k]
    block = 2 ** round(math.log2(math.sqrt(width / k)))
    whole = width - width % block
    maxima_NM = values_NV[:, :whole].unflatten(1, (-1, block)).amax(-1)
    if whole < width:
        maxima_NM = torch.cat([maxima_NM, values_NV[:, whole:].amax(-1, keepdim=True)], 1)
    # In vocabulary order, so that a stable sort keeps the lower index first.
    blocks_NK = maxima_NM.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    indices_NC = (blocks_NK[:, :, None] * block + torch.arange(block, device=values_NV.device)).flatten(1)
    found_NC = values_NV.gather(1, indices_NC.clamp(max=width - 1)).masked_fill_(indices_NC >= width, -math.inf)
    ordered = found_NC.sort(dim=1, descending=True, stable=True)
    return ordered.values[:, :k], indices_NC.gather(1, ordered.indices[:, :k])


@dataclass
class Highest(Generic[Entry]):
    """The `most` highest of many entries, at most `per_row` per row; ties go to the earlier (row, column).

    The result does not depend on the order in which entries are offered.
    """

    most: int
    per_row: int
    keys: list[tuple[float, int, int]] = field(default_factory=list)
    """(−value, row, column), in ascending order."""
    entries: list[Entry] = field(default_factory=list)

    @property
    def floor(self) -> float:
        """Values below this are not kept."""
        return -self.keys[-1][0] if len(self.keys) == self.most else -math.inf

    def offer(self, value: float, row: int, column: int, entry: Callable[[], Entry]) -> None:
        """Keep `entry()`, which is called only if the value is among the highest."""
        key = (-value, row, column)
        of_row = [at for at, (_, other, _) in enumerate(self.keys) if other == row]
        full = of_row if len(of_row) == self.per_row else range(self.most) if len(self.keys) == self.most else ()
        if full:
            if key > self.keys[full[-1]]:
                return
            del self.keys[full[-1]], self.entries[full[-1]]
        at = bisect.bisect(self.keys, key)
        self.keys.insert(at, key)
        self.entries.insert(at, entry())
