"""A linear head applied to rows slice by slice, with gradients computed along the way: shared by the fused losses.

    z = f(h·Wᵀ + b);   given ∂loss/∂z of a slice:   ∂h = ∂z·W,   ∂W += ∂zᵀ·h,   ∂b += Σ ∂z

Only one slice of logits exists at a time. Its buffers are allocated once per pass and reused by every slice: on a CPU,
page faults of fresh memory cost more than the softmax that runs over it. The weight is cast once per pass.

What happens between logits and ∂z is a matter of `torch_rows` or `triton_rows`. The former gets z itself, and gives ∂z
in exact numbers (`add`); the latter gets raw products h·Wᵀ and overwrites them with their gradient (`add_products`).

Shapes: N rows (one per learned token), D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from easydistill.kernels.devices import adds_products_in_float32, rows_of_raw_products
from easydistill.models.head import Head, rows_per_chunk

WIDENED_BYTES = 8 << 20
"""Small enough for the allocator to reuse the same memory."""
WIDE = 64
"""Rows of raw products are as long as a multiple of this many values, so that loads and matrix products are aligned."""


@dataclass(frozen=True)
class HeadSlice:
    """Some rows and their logits."""

    rows: slice
    hidden_ND: Tensor
    logits_NV: Tensor
    """Logits, or raw products, in the dtype of the matrix products; valid until the next slice."""


class HeadPass:
    """The pass of one forward call of an autograd function.

    Matrix products run in the autocast dtype if autocast is on (hidden states may still be float32, a norm's output),
    else in that of the hidden states; everything else in `exact`: float32, or float64 for float64.

    Args:
        wanted: whether hidden states, weight and bias need a gradient.
        chunk_bytes: memory of a slice of logits (exact ones, unless raw); None for what suits the device.
        raw: slices hold raw products, without bias, scale and soft cap.
        dtype: of matrix products, if not what autocast says.
        step: rows of a slice, if not as many as `chunk_bytes` holds.
    """

    def __init__(
        self,
        hidden_ND: Tensor,
        head: Head,
        wanted: tuple[bool, bool, bool],
        chunk_bytes: int | None = None,
        raw: bool = False,
        dtype: torch.dtype | None = None,
        step: int | None = None,
    ) -> None:
        self._dtype = dtype or product_dtype(hidden_ND)
        self.exact = torch.float64 if self._dtype == torch.float64 else torch.float32
        self.head = Head(head.weight_VD.to(self._dtype), head.bias_V, head.scale, head.softcap)
        self._hidden_ND = hidden_ND
        self._raw = raw
        rows, self._vocabulary = len(hidden_ND), head.weight_VD.shape[0]
        if step is not None:
            self._step = min(max(1, rows), step)
        elif raw:
            row_bytes = self._dtype.itemsize * self._vocabulary
            self._step = rows_of_raw_products(rows, row_bytes, chunk_bytes, hidden_ND.device)
        else:
            self._step = min(max(1, rows), rows_per_chunk(self._vocabulary, chunk_bytes, hidden_ND.device))
        self._buffers: dict[str, Tensor] = {}
        self.wanted = any(wanted)
        self._dhidden_ND = torch.empty_like(hidden_ND) if wanted[0] else None
        self._adds = adds_products_in_float32(hidden_ND.device, self._dtype)
        self._dweight_VD: Tensor | None = None
        if wanted[1]:
            # The first product overwrites it where products are added by the matrix product itself.
            made = torch.empty_like if self._adds and rows else torch.zeros_like
            self._dweight_VD = made(head.weight_VD, dtype=self.exact)
        bias_V = head.bias_V
        self._dbias_V = torch.zeros_like(bias_V, dtype=self.exact) if wanted[2] and bias_V is not None else None

    def slices(self) -> Iterator[HeadSlice]:
        for start in range(0, self._hidden_ND.shape[0], self._step):
            rows = slice(start, start + self._step)
            part_ND = self._hidden_ND[rows].to(self._dtype)
            if self._raw:
                logits_NV = torch.mm(part_ND, self.head.weight_VD.T, out=self._products(len(part_ND)))
            else:
                out_NV = self.buffer("logits", len(part_ND), self._vocabulary, self._dtype)
                logits_NV = self.head.logits(part_ND, out_NV)
            yield HeadSlice(rows, part_ND, logits_NV)

    def _products(self, rows: int) -> Tensor:
        """[rows, V] of uninitialised memory; rows begin a multiple of `WIDE` apart."""
        wide = -(-self._vocabulary // WIDE) * WIDE
        if "products" not in self._buffers:
            self._buffers["products"] = self._hidden_ND.new_empty(self._step, wide, dtype=self._dtype)
        return self._buffers["products"][:rows, : self._vocabulary]

    def buffer(self, name: str, rows: int, columns: int, dtype: torch.dtype | None = None) -> Tensor:
        """[rows, columns] of uninitialised, contiguous memory; the same memory for the same name."""
        if name not in self._buffers:
            self._buffers[name] = self._hidden_ND.new_empty(self._step * self._vocabulary, dtype=dtype or self.exact)
        return self._buffers[name][: rows * columns].view(rows, columns)

    def log_softmax(self, logits_NV: Tensor, name: str, temperature: float = 1.0) -> Tensor:
        """Exact log-probabilities of logits / temperature, in the buffer called `name`."""
        exact_NV = self.buffer("exact", *logits_NV.shape).copy_(logits_NV)
        if temperature != 1.0:
            exact_NV /= temperature
        return torch.log_softmax(exact_NV, -1, out=self.buffer(name, *logits_NV.shape))

    def add(self, part: HeadSlice, dlogits_NV: Tensor) -> None:
        """Propagate a slice's ∂loss/∂logits (exact; overwritten) through soft cap, scale and matrix product."""
        head = self.head
        if head.softcap is not None:
            # Soft-capped logits are c·tanh(z/c): the derivative is 1 − tanh².
            tanh_NV = self.buffer("exact", *part.logits_NV.shape).copy_(part.logits_NV).div_(head.softcap)
            dlogits_NV *= 1 - tanh_NV.square_()
        if head.scale != 1.0:
            dlogits_NV *= head.scale
        if self._dbias_V is not None:
            self._dbias_V += dlogits_NV.sum(0)
        self._multiply(part, part.logits_NV.copy_(dlogits_NV))

    def add_products(self, part: HeadSlice) -> None:
        """Propagate a slice whose raw products were overwritten with ∂loss/∂(h·Wᵀ)."""
        if self._dbias_V is not None:
            self._dbias_V += part.logits_NV.sum(0, dtype=self.exact)
        self._multiply(part, part.logits_NV)

    def _multiply(self, part: HeadSlice, small_NV: Tensor) -> None:
        """The two matrix products: with the weight, and with the hidden states."""
        if self._dhidden_ND is not None:
            if self._adds and self._dhidden_ND.dtype == self._dtype:
                torch.mm(small_NV, self.head.weight_VD, out=self._dhidden_ND[part.rows])
            else:
                self._dhidden_ND[part.rows] = small_NV @ self.head.weight_VD
        if self._dweight_VD is None:
            return
        if self._dtype == self.exact:
            self._dweight_VD.addmm_(small_NV.T, part.hidden_ND)
        elif self._adds:
            beta = 0.0 if part.rows.start == 0 else 1.0
            into_VD = self._dweight_VD
            torch.addmm(into_VD, small_NV.T, part.hidden_ND, self.exact, beta=beta, out=into_VD)
        else:
            if "dweight" not in self._buffers:
                self._buffers["dweight"] = torch.empty_like(self.head.weight_VD)
            _accumulate(self._dweight_VD, torch.mm(small_NV.T, part.hidden_ND, out=self._buffers["dweight"]))

    @property
    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of hidden states, weight and bias, by the slices that were propagated."""
        return self._dhidden_ND, self._dweight_VD, self._dbias_V

    def save(self, ctx: Any, head: Head) -> None:
        """Save the gradients for the backward pass."""
        ctx.save_for_backward(*self.gradients)
        ctx.dtypes = (head.weight_VD.dtype, None if head.bias_V is None else head.bias_V.dtype)


def _accumulate(into_VD: Tensor, part_VD: Tensor) -> None:
    """Add a tensor of a smaller dtype; on a CPU block by block, because PyTorch first widens it into fresh memory."""
    if into_VD.is_cuda:
        into_VD += part_VD
        return
    block = max(1, WIDENED_BYTES // (into_VD.element_size() * into_VD.shape[1]))
    for some_VD, more_VD in zip(into_VD.split(block), part_VD.split(block), strict=True):
        some_VD += more_VD


def product_dtype(hidden_ND: Tensor) -> torch.dtype:
    """The dtype of the matrix products."""
    kind = hidden_ND.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ND.dtype


def scaled_gradients(ctx: Any, outer: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The saved gradients of hidden states, weight and bias, times the gradient of the loss.

    Scaled in place: a copy of a large head's gradient would be the largest tensor of the step. A second backward
    through the same graph is therefore refused (by PyTorch's own check of saved tensors).
    """
    hidden_ND, weight_VD, bias_V = ctx.saved_tensors
    weight_dtype, bias_dtype = ctx.dtypes
    if hidden_ND is not None:
        hidden_ND = hidden_ND.mul_(outer)
    if weight_VD is not None:
        weight_VD = weight_VD.mul_(outer).to(weight_dtype)
    if bias_V is not None:
        bias_V = bias_V.mul_(outer).to(bias_dtype)
    return hidden_ND, weight_VD, bias_V
