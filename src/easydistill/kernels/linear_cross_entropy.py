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

from easydistill.kernels.head_pass import DEFAULT_CHUNK_BYTES, HeadPass, scaled_gradients
from easydistill.models.head import Head


def linear_cross_entropy(
    hidden_ND: Tensor, head: Head, target_N: Tensor, chunk_bytes: int = DEFAULT_CHUNK_BYTES
) -> Tensor:
    """Sum of the cross-entropies of N rows, as a float32 scalar in nats.

    Row n of `hidden_ND` predicts `target_N[n]`; callers have already shifted and dropped masked rows.
    Log-sum-exp is computed in float32 regardless of the hidden states' dtype.
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
        chunk_bytes: int,
    ) -> Tensor:
        head = Head(weight_VD, bias_V, *scaling)
        head_pass = HeadPass(hidden_ND, head, ctx.needs_input_grad[:3], chunk_bytes)
        loss = hidden_ND.new_zeros((), dtype=head_pass.exact)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for part in head_pass.slices():
                logprobs_NV = head_pass.log_softmax(part.logits_NV, "logprobs")
                target_N1 = target_N[part.rows, None]
                loss -= logprobs_NV.gather(1, target_N1).sum()
                if head_pass.wanted:
                    dlogits_NV = logprobs_NV.exp_()
                    dlogits_NV.scatter_add_(1, target_N1, torch.full_like(target_N1, -1, dtype=head_pass.exact))
                    head_pass.add(part, dlogits_NV)
        head_pass.save(ctx, head)
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return *scaled_gradients(ctx, outer[0]), None, None, None
