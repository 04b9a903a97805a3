"""Cross-entropy of a linear head, summed over rows, without ever holding the logits of all rows.

    loss = Σ_n  logsumexp_v(z_nv) − z_n,target(n),        z = f(h·Wᵀ + b)

where f is the identity, a scale, or a soft cap c·tanh(z/c), as the model's own head has it. Gradients are
computed in the forward pass, slice by slice of rows: ∂loss/∂z = softmax(z) − onehot(target).

Shapes: N rows (one per learned token), D hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from easydistill.kernels.devices import uses_triton
from easydistill.kernels.head_pass import HeadPass, scaled_gradients
from easydistill.kernels.rows import rows_class
from easydistill.models.head import Head


def linear_cross_entropy(hidden_ND: Tensor, head: Head, target_N: Tensor, chunk_bytes: int | None = None) -> Tensor:
    """Sum of the cross-entropies of N rows, as a float32 scalar in nats.

    Row n of `hidden_ND` predicts `target_N[n]`; callers have already shifted and dropped masked rows.
    Log-sum-exp is computed in float32 regardless of the hidden states' dtype. A slice of logits takes about
    `chunk_bytes`; None for what suits the device.
    """
    return _LinearCrossEntropy.apply(
        hidden_ND, head.weight_VD, head.bias_V, target_N, (head.scale, head.softcap), chunk_bytes
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        scaling: tuple[float, float | None],
        chunk_bytes: int | None,
    ) -> Tensor:
        head = Head(weight_VD, bias_V, *scaling)
        raw = uses_triton(hidden_ND)
        rows_of = rows_class(raw)
        head_pass = HeadPass(hidden_ND, head, ctx.needs_input_grad[:3], chunk_bytes, raw)
        loss = hidden_ND.new_zeros((), dtype=head_pass.exact)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for part in head_pass.slices():
                rows = rows_of(head_pass, part)
                target_N1 = target_N[part.rows, None]
                logprobs_N1, _ = rows.at(target_N1)
                loss -= logprobs_N1.sum()
                if head_pass.wanted:
                    rows.propagate_labels(target_N1)
        head_pass.save(ctx, head)
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return *scaled_gradients(ctx, outer[0]), None, None, None
