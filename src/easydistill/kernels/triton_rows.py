"""What `torch_rows` does, by the kernels in `triton_kernels`, for a slice that holds raw products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from easydistill.kernels.head_pass import HeadPass, HeadSlice
from easydistill.kernels.triton_kernels import gradient, overwrite, statistics


@dataclass(frozen=True)
class Launch:
    """How a kernel is cut: columns of a block, warps of a program."""

    block: int
    warps: int


STATISTICS = Launch(2048, 8)
GRADIENT = Launch(4096, 8)
LISTED = 32
"""Columns of interest that kernels have room for at least: each size is compiled anew."""
OPTIONS = {"enable_fp_fusion": True}
"""Stated, because the default changes with Triton 3.10."""


class TritonRows:
    """The interface of `torch_rows.TorchRows`, for raw products."""

    def __init__(self, head_pass: HeadPass, part: HeadSlice, temperature: float = 1.0, real: int | None = None) -> None:
        self._head_pass, self._part = head_pass, part
        self._products_NV = part.logits_NV
        rows, vocabulary = part.logits_NV.shape
        self._real = min(real or vocabulary, vocabulary)
        self._lse_N, self._soft_lse_N = part.logits_NV.new_empty((2, rows), dtype=head_pass.exact)
        head = head_pass.head
        self._bias_V = None if head.bias_V is None else head.bias_V.contiguous()
        self._shape = (vocabulary, self._real)
        self._constants = {
            "SCALE": head.scale,
            "CAP": head.softcap or 0.0,
            "PER_TEMPERATURE": 1.0 / temperature,
            "HAS_BIAS": head.bias_V is not None,
            "PADDED": self._real < vocabulary,
        }
        self._logits_NC: Tensor | None = None

    def top(self, count: int) -> Tensor:
        """Ids [n, count] of the most probable real tokens, most probable first."""
        logits_NV = self._products_NV[:, : self._real]
        if self._bias_V is not None:
            logits_NV = logits_NV + self._bias_V[: self._real]
        # Scales and caps keep the order.
        return logits_NV.topk(count, largest=self._head_pass.head.scale > 0).indices

    def at(self, ids_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of some ids: over the whole head; over real tokens, at the temperature."""
        ids_NC = ids_NC.contiguous()
        rows, listed = ids_NC.shape
        logits_NC = self._lse_N.new_empty(rows, listed)
        with torch.cuda.device_of(ids_NC):
            statistics[(rows,)](
                self._products_NV,
                self._products_NV.stride(0),
                self._bias_V,
                ids_NC,
                listed,
                logits_NC,
                self._lse_N,
                self._soft_lse_N,
                *self._shape,
                **self._constants,
                LISTED_BLOCK=max(LISTED, triton.next_power_of_2(listed)),
                BLOCK=STATISTICS.block,
                num_warps=STATISTICS.warps,
                **OPTIONS,
            )
        self._logits_NC = logits_NC
        soft_NC = logits_NC * self._constants["PER_TEMPERATURE"] - self._soft_lse_N[:, None]
        return logits_NC - self._lse_N[:, None], soft_NC

    def propagate_labels(self, label_N1: Tensor) -> None:
        """Propagate the gradient of the summed cross-entropy; after `at`."""
        self._write_gradient(None, None, label_N1.contiguous())
        self._head_pass.add_products(self._part)

    def propagate(self, ids_NC: Tensor, special_NC: Tensor, share_N1: Tensor, everywhere_N1: Tensor) -> None:
        """Propagate ∂loss/∂z: the row's multiples of both softmaxes, but `special_NC` at the ids that `at` got."""
        assert self._logits_NC is not None, "the statistics come first"
        self._write_gradient(share_N1.contiguous(), everywhere_N1.contiguous(), None)
        head = self._head_pass.head
        if head.softcap is not None:
            special_NC = special_NC * (1 - (self._logits_NC / head.softcap).square())
        if head.scale != 1.0:
            special_NC = special_NC * head.scale
        rows, listed = ids_NC.shape
        with torch.cuda.device_of(ids_NC):
            overwrite[(rows,)](
                self._products_NV,
                self._products_NV.stride(0),
                ids_NC.contiguous(),
                special_NC.contiguous(),
                listed,
                LISTED_BLOCK=max(LISTED, triton.next_power_of_2(listed)),
                num_warps=1,
                **OPTIONS,
            )
        self._head_pass.add_products(self._part)

    def _write_gradient(self, share_N1: Tensor | None, everywhere_N1: Tensor | None, label_N1: Tensor | None) -> None:
        rows, stride = len(self._products_NV), self._products_NV.stride(0)
        with torch.cuda.device_of(self._products_NV):
            gradient[(rows, triton.cdiv(stride, GRADIENT.block))](
                self._products_NV,
                stride,
                self._bias_V,
                self._lse_N,
                self._soft_lse_N,
                share_N1,
                everywhere_N1,
                label_N1,
                *self._shape,
                **self._constants,
                LABELS_ALONE=label_N1 is not None,
                BLOCK=GRADIENT.block,
                num_warps=GRADIENT.warps,
                **OPTIONS,
            )
