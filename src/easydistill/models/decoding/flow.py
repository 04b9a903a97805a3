"""Prompts that come and go while a model goes on with others: what a server decodes with.

A new row joins the others with the keys and values of its prompt, padded on the left as if all had begun together; a
row that has ended leaves. So a row's logits are those of `Batch`, up to rounding, whatever is computed beside it.

Shapes: B rows, V vocabulary, T tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import Cache

from easydistill.models.decoding.batch import SPARE, Batch, FilledLayer, NextLogits

if TYPE_CHECKING:
    import torch

_ENDLESS = sys.maxsize
"""Room of a cache that grows with its rows."""


class Flow:
    """Rows that a model goes on with together.

    Args:
        model: a causal language model for which `decodes` holds, on its device.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._layers: list[FilledLayer] = []
        self._forward: NextLogits | None = None
        self._seen_BT: torch.Tensor | None = None
        self._logits_BV: torch.Tensor | None = None

    def __len__(self) -> int:
        return 0 if self._seen_BT is None else len(self._seen_BT)

    @property
    def width(self) -> int:
        """Tokens of a row in the cache, padding included."""
        return 0 if self._seen_BT is None else int(self._seen_BT.shape[1])

    @property
    def logits(self) -> torch.Tensor:
        """(B, V): of each row's next token."""
        assert self._logits_BV is not None, "there are no rows"
        return self._logits_BV

    def add(self, prompts: Sequence[list[int]]) -> None:
        """Let rows for these prompts join, behind the others."""
        import torch

        new = Batch(self._model, prompts, 0, capacity=_ENDLESS)
        logits_BV = new.begin()
        seen_BT, layers = new.seen, new.layers
        if self._seen_BT is not None and self._logits_BV is not None:
            width = max(self.width, seen_BT.shape[1])
            pairs = zip(self._layers, layers, strict=True)
            layers = [own.joined(other, _ENDLESS) for own, other in pairs]
            both = (_padded(self._seen_BT, width), _padded(seen_BT, width))
            seen_BT, logits_BV = torch.cat(both), torch.cat([self._logits_BV, logits_BV])
        self._seen_BT, self._logits_BV = seen_BT, logits_BV
        self._use(layers)

    def step(self, tokens_B: torch.Tensor) -> None:
        """Go on with one more token of each row."""
        import torch

        assert self._seen_BT is not None and self._forward is not None
        self._seen_BT = torch.cat([self._seen_BT, self._seen_BT.new_ones(len(self), 1)], dim=1)
        position_B1 = self._seen_BT.sum(1, keepdim=True) - 1
        self._logits_BV = self._forward(tokens_B[:, None], self._seen_BT, position_B1)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        assert self._seen_BT is not None and self._logits_BV is not None
        if not rows:
            self._layers, self._forward, self._seen_BT, self._logits_BV = [], None, None, None
            return
        rows_B = self._seen_BT.new_tensor(rows)
        self._seen_BT, self._logits_BV = self._seen_BT[rows_B], self._logits_BV[rows_B]
        # Columns in which only rows that have left had tokens.
        first = int(self._seen_BT.argmax(1).min())
        first = first if first >= SPARE else 0
        self._seen_BT = self._seen_BT[:, first:]
        for layer in self._layers:
            layer.keep(rows_B, first)

    def _use(self, layers: list[FilledLayer]) -> None:
        self._layers = layers
        self._forward = NextLogits(self._model, Cache(layers=layers))


def _padded(seen_BT: torch.Tensor, width: int) -> torch.Tensor:
    import torch

    return torch.nn.functional.pad(seen_BT, (width - seen_BT.shape[1], 0))
