"""Log-probabilities of given tokens under a linear head, on a GPU, with a gradient that recomputes the logits.

    logprob_n = z_n,target(n) − logsumexp_v(z_nv);      ∂logprob_n/∂z_nv = [v = target(n)] − softmax(z_n)_v

Neither pass holds more than a slice of logits, and none of them in float32.

Shapes: N rows (one per token), D hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from easydistill.kernels.head_pass import HeadPass, HeadSlice, product_dtype
from easydistill.kernels.rows import Rows, rows_class
from easydistill.models.head import Head


def linear_logprobs(
    hidden_ND: Tensor, head: Head, target_N: Tensor, vocabulary: int | None = None, chunk_bytes: int | None = None
) -> Tensor:
    """float32 log-probabilities [N] of `target_N`, over the first `vocabulary` tokens, by Triton's kernels."""
    found: Tensor = _LinearLogprobs.apply(
        hidden_ND, head.weight_VD, head.bias_V, target_N, (head.scale, head.softcap), vocabulary, chunk_bytes
    )
    return found


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        scaling: tuple[float, float | None],
        vocabulary: int | None,
        chunk_bytes: int | None,
    ) -> Tensor:
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, target_N)
        ctx.rest = (scaling, vocabulary, chunk_bytes, product_dtype(hidden_ND))
        head = Head(weight_VD, bias_V, *scaling)
        head_pass = HeadPass(hidden_ND, head, (False, False, False), chunk_bytes, raw=True)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            found_N = hidden_ND.new_empty(len(hidden_ND), dtype=head_pass.exact)
            for part in head_pass.slices():
                _, logprobs_N1 = _rows(head_pass, part, vocabulary).at(target_N[part.rows, None])
                found_N[part.rows] = logprobs_N1[:, 0]
        return found_N

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        hidden_ND, weight_VD, bias_V, target_N = ctx.saved_tensors
        scaling, vocabulary, chunk_bytes, dtype = ctx.rest
        head = Head(weight_VD, bias_V, *scaling)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            head_pass = HeadPass(hidden_ND, head, ctx.needs_input_grad[:3], chunk_bytes, raw=True, dtype=dtype)
            for part in head_pass.slices():
                rows = _rows(head_pass, part, vocabulary)
                target_N1, outer_N1 = target_N[part.rows, None], outer[0][part.rows, None]
                _, logprobs_N1 = rows.at(target_N1)
                special_N1 = outer_N1 * (1 - logprobs_N1.exp())
                rows.propagate(target_N1, special_N1, torch.zeros_like(outer_N1), -outer_N1)
        like = (hidden_ND, weight_VD, bias_V)
        made = zip(head_pass.gradients, like, strict=True)
        return *(None if grad is None else grad.to(of.dtype) for grad, of in made), None, None, None, None


def _rows(head_pass: HeadPass, part: HeadSlice, vocabulary: int | None) -> Rows:
    return rows_class(raw=True)(head_pass, part, 1.0, vocabulary)
