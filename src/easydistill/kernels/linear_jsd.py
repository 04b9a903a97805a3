"""Generalised Jensen–Shannon divergence between two models' whole distributions, from their last hidden states.

    loss = Σ_n D(p_T,n , p_S,n),     D = β KL(p_T ‖ m) + (1−β) KL(p_S ‖ m),     m = β p_T + (1−β) p_S

(GKD, arXiv 2306.13649), with forward KL at β = 0 and reverse KL at β = 1; p = softmax(z/τ), z = f(h·Wᵀ + b). With
s = log p_S and t = log p_T, its gradient with respect to the student's logits has a closed form:

    ∂D/∂z_v = (1/τ) (p_S,v − p_T,v)                                                     β = 0
    ∂D/∂z_v = (1/τ) (1−β) p_S,v (s_v − log m_v − KL(p_S ‖ m))                           0 < β < 1
    ∂D/∂z_v = (1/τ) p_S,v (s_v − t_v − KL(p_S ‖ p_T))                                   β = 1

and for α KL(p_T ‖ p_S) + (1−α) KL(p_S ‖ p_T), a mixture of both KLs, the mixture of their gradients. Rows may differ in
their divergence: only the last passes over a slice depend on it. No graph over the vocabulary is kept. Gradients are
computed in the forward pass, slice by slice; the backward pass scales them. As in TRL and in the paper, there is no
factor τ².

Shapes: N rows (one per token of an answer), D hidden width (each model has its own), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from easydistill.kernels.head_pass import HeadPass, HeadSlice, scaled_gradients
from easydistill.models.head import Head, rows_per_chunk


@dataclass(frozen=True)
class JsdLoss:
    """Of N rows; only `total` has a gradient. float32 (float64 for float64), nats."""

    total: Tensor
    """Scalar: the sum over rows."""
    divergence_N: Tensor
    reverse_kl_N: Tensor
    """KL(p_S ‖ p_T)."""
    entropy_N: Tensor
    """Of the student."""


@dataclass(frozen=True)
class Divergence:
    """Of a row: the generalised JSD, or a mixture of both KLs."""

    beta: float = 0.5
    """From 0 (forward KL) to 1 (reverse KL)."""
    forward_share: float | None = None
    """α: if given, α · forward KL + (1−α) · reverse KL instead."""


Span = tuple[int, Divergence]
"""A number of rows that follow one another, and their divergence."""


class _Weighing(NamedTuple):
    """What the sum is made of, beside hidden states and heads."""

    spans: Sequence[Span]
    temperature: float
    vocabulary: int | None
    chunk_bytes: int | None

    def within(self, start: int, count: int) -> Iterator[tuple[slice, Divergence]]:
        """The spans of `count` rows from `start` on, as slices of these rows."""
        at = -start
        for rows, divergence in self.spans:
            part = slice(max(0, at), min(count, at + rows))
            if part.start < part.stop:
                yield part, divergence
            at += rows


def linear_generalized_jsd(
    student_ND: Tensor,
    student_head: Head,
    teacher_ND: Tensor,
    teacher_head: Head,
    beta: float | Sequence[Span],
    *,
    temperature: float = 1.0,
    vocabulary: int | None = None,
    chunk_bytes: int | None = None,
) -> JsdLoss:
    """The divergence of N rows.

    Args:
        student_ND: hidden states; row n of both models predicts the same token.
        beta: of all rows, from 0 (forward KL) to 1 (reverse KL); or the divergences of all rows, in their order.
        temperature: of both distributions; `reverse_kl_N` and `entropy_N` are at it, too.
        vocabulary: token ids below this are real, other rows of either head padding; None for those both heads have.
        chunk_bytes: about what a slice of logits takes; None for what suits the device.
    """
    spans = joined([(len(student_ND), Divergence(beta))] if isinstance(beta, int | float) else beta)
    assert sum(rows for rows, _ in spans) == len(student_ND), "each row has one divergence"
    found = _LinearJsd.apply(
        student_ND,
        student_head.weight_VD,
        student_head.bias_V,
        teacher_ND.detach(),
        teacher_head,
        (student_head.scale, student_head.softcap),
        _Weighing(spans, temperature, vocabulary, chunk_bytes),
    )
    return JsdLoss(*found)


def joined(spans: Sequence[Span]) -> list[Span]:
    """The same with as few spans as there can be; each costs some launches a slice."""
    found: list[Span] = []
    for rows, divergence in spans:
        if found and found[-1][1] == divergence:
            rows += found.pop()[0]
        if rows:
            found.append((rows, divergence))
    return found


class _LinearJsd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        teacher_ND: Tensor,
        teacher_head: Head,
        scaling: tuple[float, float | None],
        weighing: _Weighing,
    ) -> tuple[Tensor, ...]:
        head = Head(weight_VD, bias_V, *scaling)
        # Slices of both models have the same rows, as many as fit with the wider head.
        widest = max(len(weight_VD), len(teacher_head.weight_VD))
        step = rows_per_chunk(widest, weighing.chunk_bytes, student_ND.device)
        own = HeadPass(student_ND, head, ctx.needs_input_grad[:3], step=step)
        other = HeadPass(teacher_ND, teacher_head, (False, False, False), step=step)
        parts = []
        with torch.autocast(student_ND.device.type, enabled=False):
            for part, read in zip(own.slices(), other.slices(), strict=True):
                parts.append(_slice(own, part, other, read, weighing))
        own.save(ctx, head)
        found_3N = torch.cat(parts, dim=1) if parts else student_ND.new_zeros(3, 0, dtype=own.exact)
        divergence_N, reverse_kl_N, entropy_N = found_3N
        ctx.mark_non_differentiable(divergence_N, reverse_kl_N, entropy_N)
        return divergence_N.sum(), divergence_N, reverse_kl_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return *scaled_gradients(ctx, outer[0]), None, None, None, None


def _slice(own: HeadPass, part: HeadSlice, other: HeadPass, read: HeadSlice, weighing: _Weighing) -> Tensor:
    """[3, n]: divergence, reverse KL and entropy of a slice's rows; the gradient of the first is propagated."""
    whole = part.logits_NV.shape
    real = min(weighing.vocabulary or whole[1], whole[1], read.logits_NV.shape[1])
    student_NV = own.log_softmax(part.logits_NV[:, :real], "logprobs", weighing.temperature)
    teacher_NV = other.log_softmax(read.logits_NV[:, :real], "logprobs", weighing.temperature)
    # With a soft cap, `add` needs the pass's own buffer.
    scratch = "exact" if own.head.softcap is None else "probabilities"
    probs_NV = torch.exp(student_NV, out=own.buffer(scratch, whole[0], real))
    taught_NV = other.buffer("exact", whole[0], real)
    parts = [
        _rows(divergence, student_NV[rows], teacher_NV[rows], probs_NV[rows], taught_NV[rows])
        for rows, divergence in weighing.within(part.rows.start, whole[0])
    ]
    dlogits_NV = student_NV
    if own.wanted:
        if weighing.temperature != 1.0:
            dlogits_NV /= weighing.temperature
        own.add(part, dlogits_NV if real == whole[1] else _with_padding(dlogits_NV, own.buffer("padded", *whole)))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _rows(
    divergence: Divergence, student_NV: Tensor, teacher_NV: Tensor, probs_NV: Tensor, taught_NV: Tensor
) -> Tensor:
    """[3, n]: divergence, reverse KL and entropy of rows; log p_S is overwritten with the gradient of the first.

    Args:
        student_NV: log p_S.
        teacher_NV: log p_T, overwritten.
        probs_NV: p_S.
        taught_NV: room for p_T.
    """
    negative_entropy_N = _dot(probs_NV, student_NV)
    reverse_kl_N = negative_entropy_N - _dot(probs_NV, teacher_NV)
    share = divergence.forward_share
    beta = divergence.beta if share is None else 1.0 - share
    if beta == 1:
        student_NV.sub_(teacher_NV).sub_(reverse_kl_N[:, None]).mul_(probs_NV)
        return torch.stack([reverse_kl_N, reverse_kl_N, -negative_entropy_N])
    torch.exp(teacher_NV, out=taught_NV)
    taught_N = _dot(taught_NV, teacher_NV)
    if beta == 0:
        value_N = taught_N - _dot(taught_NV, student_NV)
        torch.sub(probs_NV, taught_NV, out=student_NV)
    elif share is not None:
        forward_kl_N = taught_N - _dot(taught_NV, student_NV)
        value_N = share * forward_kl_N + (1 - share) * reverse_kl_N
        reverse_NV = student_NV.sub_(teacher_NV).sub_(reverse_kl_N[:, None])
        reverse_NV.mul_(1 - share).add_(share).mul_(probs_NV).sub_(taught_NV, alpha=share)
    else:
        # A mixture that underflows has no weight on either side.
        least = torch.finfo(student_NV.dtype).tiny
        mixed_NV = torch.lerp(probs_NV, taught_NV, beta, out=teacher_NV).clamp_min_(least).log_()
        own_side_N = negative_entropy_N - _dot(probs_NV, mixed_NV)
        value_N = beta * (taught_N - _dot(taught_NV, mixed_NV)) + (1 - beta) * own_side_N
        student_NV.sub_(mixed_NV).sub_(own_side_N[:, None]).mul_(probs_NV).mul_(1 - beta)
    return torch.stack([value_N, reverse_kl_N, -negative_entropy_N])


def _dot(first_NV: Tensor, second_NV: Tensor) -> Tensor:
    """Σ_v first · second, [n], without a tensor of all products."""
    return torch.einsum("nv,nv->n", first_NV, second_NV)


def _with_padding(values_NR: Tensor, into_NV: Tensor) -> Tensor:
    """The values, and zeros in the columns that are not real tokens."""
    real = values_NR.shape[1]
    into_NV[:, real:] = 0
    into_NV[:, :real] = values_NR
    return into_NV
