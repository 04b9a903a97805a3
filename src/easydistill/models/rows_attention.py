"""Attention of short rows that lie behind one another in a single sequence, on a CPU.

    A = softmax(s·Q·Kᵀ + causal mask) V,    row by row

What all rows begin with stands in the sequence once, before the rows: each row sees it, and it sees itself alone.

PyTorch's kernels work in blocks, as long sequences need; for short rows plain matrix products take a third of their
time, forward and backward, and the queries that share keys are multiplied with them together. Scores and softmax are
float32 (float64 for float64); probabilities, their gradients and the other products have the number type of V.

Shapes: N tokens of the sequence, P of them shared; B rows of at most W more tokens, S = P + W keys; H query heads in G
groups of K key heads, D their width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

LAYOUT = "rows_layout"
"""Name of the argument by which a model passes the layout on to its attention."""
_NAME = "sdpa"
_UNKNOWN = ("position_bias", "sliding_window", "softcap", "s_aux", "sinks")
"""Arguments with which some families ask for another attention than plain causal softmax."""


@dataclass(frozen=True)
class RowsLayout:
    """Where the rows are in a sequence.

    Args:
        shared: tokens that all rows begin with.
        lengths: further tokens of each row; at least one.
    """

    shared: int
    lengths: tuple[int, ...]

    @cached_property
    def starts(self) -> Tensor:
        """Where each row's own tokens begin in the sequence."""
        lengths_B = torch.tensor(self.lengths)
        return self.shared + lengths_B.cumsum(0) - lengths_B

    @cached_property
    def width(self) -> int:
        return max(self.lengths)

    @cached_property
    def _used(self) -> Tensor:
        return torch.arange(self.width) < torch.tensor(self.lengths)[:, None]

    @cached_property
    def _tokens(self) -> Tensor:
        """Tokens in the sequence, and the last one of all in unused places."""
        last = self.shared + sum(self.lengths) - 1
        return (self.starts[:, None] + torch.arange(self.width)).clamp(max=last)

    @cached_property
    def _used_places(self) -> Tensor:
        """Places, in the flattened [B, W], of the tokens after the shared ones."""
        return self._used.flatten().nonzero().squeeze(1)

    @cached_property
    def _unused_places(self) -> Tensor:
        return (~self._used).flatten().nonzero().squeeze(1)

    def places(self, row_N: Tensor, token_N: Tensor) -> Tensor:
        """Where tokens of rows are in the sequence, by row and by place in the whole row."""
        own_N = self.starts[row_N] + token_N - self.shared
        return torch.where(token_N < self.shared, token_N, own_N)

    def hides(self, queries: int, keys: int) -> Tensor:
        """[queries, keys], to be added to scores: the last query sees all keys, each one before it one less."""
        return torch.full((queries, keys), -torch.inf).triu_(keys - queries + 1)

    def spread(self, tokens_NXD: Tensor) -> Tensor:
        """[B, W, X, D]: the rows' own tokens; what is in unused places is finite and means nothing."""
        return tokens_NXD.index_select(0, self._tokens.flatten()).unflatten(0, self._tokens.shape)

    def spread_gradient(self, tokens_NXD: Tensor) -> Tensor:
        """The same with zeros in unused places."""
        spread_BWXD = self.spread(tokens_NXD)
        spread_BWXD.flatten(0, 1).index_fill_(0, self._unused_places, 0.0)
        return spread_BWXD

    def gather(self, spread_BWXD: Tensor) -> Tensor:
        """[N − P, X, D]: the tokens of the rows, without unused places."""
        return spread_BWXD.flatten(0, 1).index_select(0, self._used_places)


@dataclass(frozen=True)
class _Part:
    """Some rows of equal width, and the keys that they see; each tensor is laid out for matrix products."""

    query_BKXD: Tensor
    """X: the W queries of each of G heads."""
    key_BKSD: Tensor
    value_BKSD: Tensor

    @classmethod
    def of(cls, query_BWHD: Tensor, key_BSKD: Tensor, value_BSKD: Tensor) -> _Part:
        return cls(grouped(query_BWHD, key_BSKD.shape[2]), key_BSKD.transpose(1, 2), value_BSKD.transpose(1, 2))

    def forward(self, hides_WS: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """(outputs [B, W, H, D], probabilities [B, K, X, S])."""
        exact = torch.promote_types(self.query_BKXD.dtype, torch.float32)
        scores_BKXS = (self.query_BKXD.to(exact) * scale) @ self.key_BKSD.to(exact).transpose(-1, -2)
        rows = len(hides_WS)
        scores_BKXS.unflatten(2, (-1, rows)).add_(hides_WS)
        probs_BKXS = scores_BKXS.softmax(-1).to(self.value_BKSD.dtype)
        return ungrouped(probs_BKXS @ self.value_BKSD, rows), probs_BKXS

    def backward(self, probs_BKXS: Tensor, dout_BWHD: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries [B, W, H, D], keys and values [B, S, K, D]."""
        low = self.value_BKSD.dtype
        dout_BKXD = grouped(dout_BWHD.to(low), self.key_BKSD.shape[1])
        dvalue_BKSD = probs_BKXS.transpose(-1, -2) @ dout_BKXD
        dprobs_BKXS = dout_BKXD @ self.value_BKSD.transpose(-1, -2)
        dscores_BKXS = torch._softmax_backward_data(dprobs_BKXS, probs_BKXS, -1, low)
        dquery_BKXD = (dscores_BKXS @ self.key_BKSD.to(low)).mul_(scale)
        dkey_BKSD = (dscores_BKXS.transpose(-1, -2) @ self.query_BKXD.to(low)).mul_(scale)
        return ungrouped(dquery_BKXD, dout_BWHD.shape[1]), dkey_BKSD.transpose(1, 2), dvalue_BKSD.transpose(1, 2)


def grouped(heads_BWHD: Tensor, key_heads: int) -> Tensor:
    """[B, K, G·W, D]: heads that share keys together."""
    return heads_BWHD.unflatten(2, (key_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def ungrouped(grouped_BKXD: Tensor, width: int) -> Tensor:
    """[B, W, H, D] of [B, K, G·W, D]."""
    return grouped_BKXD.unflatten(2, (-1, width)).permute(0, 3, 1, 2, 4).flatten(2, 3)


class _RowsAttention(torch.autograd.Function):
    """(queries [N, H, D], keys and values [N, K, D]) → outputs [N, H, D]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: RowsLayout, scale: float) -> Tensor:
        shared = layout.shared
        with torch.autocast("cpu", enabled=False):
            rows = _rows(query, key, value, layout)
            out_BWHD, probs = rows.forward(layout.hides(layout.width, shared + layout.width), scale)
            out_NHD = layout.gather(out_BWHD)
            first_probs = probs[:0]
            if shared:
                first_1PHD, first_probs = _first(query, key, value, shared).forward(layout.hides(shared, shared), scale)
                out_NHD = torch.cat([first_1PHD[0], out_NHD])
        ctx.save_for_backward(query, key, value, probs, first_probs)
        ctx.layout, ctx.scale = layout, scale
        return out_NHD

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        query, key, value, probs, first_probs = ctx.saved_tensors
        layout, scale, shared = ctx.layout, ctx.scale, ctx.layout.shared
        (dout_NHD,) = outer
        with torch.autocast("cpu", enabled=False):
            rows = _rows(query, key, value, layout)
            dquery_BWHD, *others = rows.backward(probs, layout.spread_gradient(dout_NHD), scale)
            own = [layout.gather(dquery_BWHD), *(layout.gather(found[:, shared:]) for found in others)]
            if not shared:
                return *(found.to(of.dtype) for found, of in zip(own, (query, key, value), strict=True)), None, None
            first = [
                found[0]
                for found in _first(query, key, value, shared).backward(first_probs, dout_NHD[None, :shared], scale)
            ]
            for into, found in zip(first[1:], others, strict=True):
                into += found[:, :shared].sum(0, dtype=torch.promote_types(found.dtype, torch.float32))
            whole = [torch.cat(parts) for parts in zip(first, own, strict=True)]
        return *(found.to(of.dtype) for found, of in zip(whole, (query, key, value), strict=True)), None, None


def _rows(query_NHD: Tensor, key_NKD: Tensor, value_NKD: Tensor, layout: RowsLayout) -> _Part:
    keys, values = layout.spread(key_NKD), layout.spread(value_NKD)
    if layout.shared:
        rows = len(layout.lengths)
        keys, values = (
            torch.cat([whole[None, : layout.shared].expand(rows, -1, -1, -1), own], dim=1)
            for whole, own in ((key_NKD, keys), (value_NKD, values))
        )
    return _Part.of(layout.spread(query_NHD), keys, values)


def _first(query_NHD: Tensor, key_NKD: Tensor, value_NKD: Tensor, shared: int) -> _Part:
    return _Part.of(query_NHD[None, :shared], key_NKD[None, :shared], value_NKD[None, :shared])


def attend(query_NHD: Tensor, key_NKD: Tensor, value_NKD: Tensor, layout: RowsLayout, scale: float) -> Tensor:
    """Outputs [N, H, D] of queries [N, H, D] on keys and values [N, K, D]."""
    found: Tensor = _RowsAttention.apply(query_NHD, key_NKD, value_NKD, layout, scale)  # type: ignore[no-untyped-call]
    return found


@contextlib.contextmanager
def rows_attention() -> Iterator[None]:
    """Let models whose attention is SDPA attend within rows where they are given a layout."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = ALL_ATTENTION_FUNCTIONS[_NAME]

    def attention(
        module: Any,
        query_1HND: Tensor,
        key_1KND: Tensor,
        value_1KND: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        layout = others.pop(LAYOUT, None)
        if layout is None:
            plain: tuple[Tensor, None] = known(
                module, query_1HND, key_1KND, value_1KND, attention_mask, dropout=dropout, scaling=scaling, **others
            )
            return plain
        asked = [name for name in _UNKNOWN if others.get(name) is not None]
        if attention_mask is not None or dropout or asked or others.get("is_causal") is False:
            raise ValueError(f"{type(module).__name__} needs more of an attention than the bounds of rows")
        scale = scaling if scaling is not None else query_1HND.shape[-1] ** -0.5
        query, key, value = (part[0].transpose(0, 1) for part in (query_1HND, key_1KND, value_1KND))
        return attend(query, key, value, layout, scale)[None], None

    ALL_ATTENTION_FUNCTIONS[_NAME] = attention
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS[_NAME] = known


def shared_beginning(rows: Sequence[Any], most: int) -> int:
    """How many tokens all rows (arrays of ids) begin with, at most `most`."""
    if len(rows) < 2 or most < 1:
        return 0
    # Of arrays: torch warns of those that are read from disk, which are not writable.
    first = np.asarray(rows[0][:most])
    same = np.ones(len(first), np.bool_)
    for row in rows[1:]:
        same &= first == np.asarray(row[:most])
    return len(first) if same.all() else int(same.argmin())
