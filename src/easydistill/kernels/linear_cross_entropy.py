"""Cross-entropy of a linear head, summed over rows, without ever holding the logits of all rows.

    loss = Σ_n  logsumexp_v(z_nv) − z_n,target(n),        z = f(h·Wᵀ + b)

where f is the identity, a scale, or a soft cap c·tanh(z/c), as the model's own head has it. Gradients are
computed in the forward pass, slice by slice of rows, so at any time one slice of logits exists:
∂loss/∂z = softmax(z) − onehot(target).

Shapes: N rows (one a trained token), D hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from easydistill.models.head import Head, rows_per_chunk

DEFAULT_CHUNK_BYTES = 64 << 20


def linear_cross_entropy(
    hidden_ND: Tensor, head: Head, target_N: Tensor, chunk_bytes: int = DEFAULT_CHUNK_BYTES
) -> Tensor:
    """Sum of the cross-entropies of N rows, as a float32 scalar in nats.

    Row n of `hidden_ND` predicts `target_N[n]`; callers have shifted and dropped masked rows already.
    Log-sum-exp is taken in float32 whatever the dtype of the hidden states.
    """
    return _LinearCrossEntropy.apply(
        hidden_ND, head.weight_VD, head.bias_V, target_N, head.scale, head.softcap, chunk_bytes
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        scale: float,
        softcap: float | None,
        chunk_bytes: int,
    ) -> Tensor:
        kind = hidden_ND.device.type
        # Under autocast hidden states may still be float32 (a norm's output); matmuls run in the autocast dtype.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ND.dtype
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        with torch.autocast(kind, enabled=False):
            head = Head(weight_VD.to(dtype), bias_V, scale, softcap)
            # float64 stays float64: finite differences need it.
            exact = torch.float64 if dtype == torch.float64 else torch.float32
            loss = torch.zeros((), dtype=exact, device=hidden_ND.device)
            dhidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
            dweight_VD = torch.zeros_like(weight_VD, dtype=exact) if wants_weight else None
            dbias_V = torch.zeros_like(bias_V, dtype=exact) if wants_bias and bias_V is not None else None
            step = rows_per_chunk(weight_VD.shape[0], chunk_bytes)
            for start in range(0, hidden_ND.shape[0], step):
                rows = slice(start, start + step)
                part_ND = hidden_ND[rows].to(dtype)
                logits_NV = head.logits(part_ND)
                logprobs_NV = torch.log_softmax(logits_NV, dim=-1, dtype=exact)
                target_N1 = target_N[rows, None]
                loss -= logprobs_NV.gather(1, target_N1).sum()
                if not (wants_hidden or wants_weight or wants_bias):
                    continue
                dlogits_NV = logprobs_NV.exp_()
                dlogits_NV.scatter_add_(1, target_N1, torch.full_like(target_N1, -1, dtype=exact))
                if softcap is not None:
                    dlogits_NV *= 1 - (logits_NV.to(exact) / softcap) ** 2
                if scale != 1.0:
                    dlogits_NV *= scale
                small_NV = dlogits_NV.to(dtype)
                if dhidden_ND is not None:
                    dhidden_ND[rows] = small_NV @ head.weight_VD
                if dweight_VD is not None:
                    dweight_VD += small_NV.T @ part_ND
                if dbias_V is not None:
                    dbias_V += dlogits_NV.sum(0)
        ctx.save_for_backward(dhidden_ND, dweight_VD, dbias_V)
        ctx.weight_dtype = weight_VD.dtype
        ctx.bias_dtype = None if bias_V is None else bias_V.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        dhidden_ND, dweight_VD, dbias_V = ctx.saved_tensors
        # Scaled in place: a copy of a large head's gradient would be the largest tensor of the step. A second
        # backward through the same graph is therefore refused (by PyTorch's own check of saved tensors).
        if dhidden_ND is not None:
            dhidden_ND = dhidden_ND.mul_(gradient)
        if dweight_VD is not None:
            dweight_VD = dweight_VD.mul_(gradient).to(ctx.weight_dtype)
        if dbias_V is not None:
            dbias_V = dbias_V.mul_(gradient).to(ctx.bias_dtype)
        return dhidden_ND, dweight_VD, dbias_V, None, None, None, None
