"""Cross-entropy and divergence from a teacher for a linear head, in one pass, without the logits of all rows.

    loss = (1 − r) Σ_n [lse(z_n) − z_n,target(n)]  +  r τ² Σ_n D(teacher_n, softmax(z_n/τ)),       z = f(h·Wᵀ + b)

The teacher lists M tokens per row with their log-weights, and the remaining mass. The student's side of the divergence
is its log-probabilities s at those tokens and, with a bucket, the log of its remaining mass; D is any function of the
two, and autograd computes only its gradient over these few outcomes. With g = ∂D/∂s and p = softmax(z/τ):

    ∂D/∂z_v = (1/τ) (G_v [v listed] − p_v Σ_k G_k),      G_k = g_k − g_bucket · p_k / (1 − P),   P = Σ_k p_k

(for forward KL with a bucket: p_S − p_T on the listed tokens, p_S scaled to the teacher's remaining mass elsewhere).
So a step costs what cross-entropy costs, plus M numbers per row. All gradients are computed in the forward pass, slice
by slice; the backward pass scales them.

Shapes: N rows (one per learned token), D hidden width, V vocabulary, M listed tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from easydistill.kernels.devices import uses_triton
from easydistill.kernels.head_pass import HeadPass, HeadSlice, scaled_gradients
from easydistill.kernels.rows import Rows, rows_class
from easydistill.kernels.torch_rows import TorchRows
from easydistill.models.head import Head

Divergence = Callable[[Tensor, Tensor, bool, slice], Tensor]
"""(teacher [n, M'], student [n, M'], whether the last column is a bucket, the rows' slice) → [n], nats."""

Tail = Literal["bucket", "renormalise_teacher", "ignore"]


@dataclass(frozen=True)
class Targets:
    """The teacher's listed tokens of N rows."""

    ids_NM: Tensor
    """int64; unused places repeat the row's first token."""
    logweights_NM: Tensor
    """float; −inf in unused places."""
    log_rest_N: Tensor
    """float; log of the remaining mass, −inf for none."""
    offset_N: Tensor
    """float; a constant added to the divergence's value (drawn weights do not give the teacher's entropy)."""
    present_N: Tensor
    """bool; False for rows without a divergence."""
    labelled_N: Tensor
    """bool; False if the label is not learned (an answer that the student wrote itself)."""

    def part(self, rows: slice) -> Targets:
        """Those of some rows."""
        return Targets(
            self.ids_NM[rows],
            self.logweights_NM[rows],
            self.log_rest_N[rows],
            self.offset_N[rows],
            self.present_N[rows],
            self.labelled_N[rows],
        )


@dataclass(frozen=True)
class Objective:
    """How cross-entropy and divergence make up the loss."""

    divergence: Divergence
    kd_ratio: float
    temperature: float = 1.0
    tail: Tail = "bucket"
    by_rank: bool = False
    """Compare the student's own most probable tokens with the teacher's listed ones, rank by rank."""
    vocabulary: int | None = None
    """Token ids below this are real; the head's other rows are padding and not part of the divergence."""


@dataclass(frozen=True)
class DistillationLoss:
    """Sums over N rows; only `total` has a gradient."""

    total: Tensor
    cross_entropy: Tensor
    divergence: Tensor
    """Without the factor τ²."""


def linear_distillation(
    hidden_ND: Tensor,
    head: Head,
    target_N: Tensor,
    teacher: Targets | Callable[[slice], Tensor],
    objective: Objective,
    chunk_bytes: int | None = None,
) -> DistillationLoss:
    """The loss of N rows, as float32 scalars in nats.

    Args:
        hidden_ND: row n predicts `target_N[n]`; callers have already shifted and dropped masked rows.
        teacher: listed tokens; or a function that gives the log-probabilities [n, V] of some rows, at the
            objective's temperature, for the exact loss over the whole vocabulary (plain PyTorch on every device).
        chunk_bytes: about what a slice of logits takes; None for what suits the device.
    """
    return DistillationLoss(
        *_LinearDistillation.apply(
            hidden_ND,
            head.weight_VD,
            head.bias_V,
            target_N,
            teacher,
            objective,
            (head.scale, head.softcap),
            chunk_bytes,
        )
    )


class _LinearDistillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        teacher: Targets | Callable[[slice], Tensor],
        objective: Objective,
        scaling: tuple[float, float | None],
        chunk_bytes: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = Head(weight_VD, bias_V, *scaling)
        raw = isinstance(teacher, Targets) and uses_triton(hidden_ND)
        head_pass = HeadPass(hidden_ND, head, ctx.needs_input_grad[:3], chunk_bytes, raw)
        sums = hidden_ND.new_zeros(2, dtype=head_pass.exact)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for part in head_pass.slices():
                chunk = _Chunk(head_pass, part, target_N[part.rows], objective)
                if isinstance(teacher, Targets):
                    sums += chunk.listed(teacher.part(part.rows), rows_class(raw))
                else:
                    sums += chunk.whole(teacher(part.rows))
        head_pass.save(ctx, head)
        ratio, scale = objective.kd_ratio, objective.temperature**2
        cross_entropy, divergence = sums[0].clone(), sums[1].clone()
        ctx.mark_non_differentiable(cross_entropy, divergence)
        return (1 - ratio) * cross_entropy + ratio * scale * divergence, cross_entropy, divergence

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return *scaled_gradients(ctx, outer[0]), None, None, None, None, None


class _Chunk:
    """A slice of n rows: their losses, and the way back of their gradient.

    Cross-entropy covers all of the head's logits; the divergence only the real vocabulary.
    """

    def __init__(self, head_pass: HeadPass, part: HeadSlice, target_N: Tensor, objective: Objective) -> None:
        self._head_pass, self._part = head_pass, part
        self._target_N1 = target_N[:, None]
        self._objective = objective
        self._exact = head_pass.exact
        self._kd_share = objective.kd_ratio * objective.temperature

    def whole(self, teacher_NV: Tensor) -> Tensor:
        """(Σ cross-entropy, Σ divergence) with the teacher's whole distribution; their gradient is propagated."""
        rows = TorchRows(self._head_pass, self._part, self._objective.temperature, self._objective.vocabulary)
        logprobs_N1, _ = rows.at(self._target_N1)
        student_NV = rows.everywhere()
        everywhere_N = torch.ones_like(self._target_N1[:, 0], dtype=torch.bool)
        value, g_NV = self._divergence(teacher_NV.to(self._exact), student_NV, False, everywhere_N)
        if self._head_pass.wanted:
            label_N1 = self._target_N1.new_ones(self._target_N1.shape, dtype=self._exact)
            whole_NV = self._kd_share * (g_NV - student_NV.exp() * g_NV.sum(-1, keepdim=True))
            rows.propagate_whole(whole_NV, self._target_N1, (1.0 - self._objective.kd_ratio) * label_N1)
        return torch.stack([-logprobs_N1.sum(), value])

    def listed(self, teacher: Targets, rows_of: type[Rows]) -> Tensor:
        """(Σ cross-entropy, Σ divergence) with the teacher's listed tokens; their gradient is propagated."""
        rows = rows_of(self._head_pass, self._part, self._objective.temperature, self._objective.vocabulary)
        ids_NM = rows.top(teacher.ids_NM.shape[1]) if self._objective.by_rank else teacher.ids_NM
        unused_NM = teacher.logweights_NM.isneginf()
        # The label is an extra column.
        ids_NC = torch.cat([ids_NM, self._target_N1], dim=1)
        student = rows.at(ids_NC)
        student_NM = student[1][:, :-1].masked_fill(unused_NM, -torch.inf)
        teacher_NM = teacher.logweights_NM.to(self._exact)
        if self._objective.tail == "bucket":
            value, g_NM = self._with_bucket(teacher, teacher_NM, student_NM)
        else:
            if self._objective.tail == "renormalise_teacher":
                # A row without a signal has no mass to renormalise.
                teacher_NM = teacher_NM - teacher_NM.logsumexp(-1, keepdim=True).nan_to_num(neginf=0.0)
            value, g_NM = self._divergence(teacher_NM, student_NM, False, teacher.present_N)
        value = value + (teacher.offset_N * teacher.present_N).sum()
        label_N1 = teacher.labelled_N[:, None].to(self._exact)
        if self._head_pass.wanted:
            share_N1 = (1.0 - self._objective.kd_ratio) * label_N1
            g_NM = g_NM.masked_fill(unused_NM, 0.0)
            everywhere_N1 = -self._kd_share * g_NM.sum(-1, keepdim=True)
            special_NC = self._special(ids_NC, student, unused_NM, g_NM, share_N1, everywhere_N1)
            rows.propagate(ids_NC, special_NC, share_N1, everywhere_N1)
        return torch.stack([-(student[0][:, -1:] * label_N1).sum(), value])

    def _with_bucket(self, teacher: Targets, teacher_NM: Tensor, student_NM: Tensor) -> tuple[Tensor, Tensor]:
        """(Σ divergence, G): the bucket's gradient is propagated to the listed tokens."""
        probs_NM = student_NM.exp()
        # 1 − P loses precision as P approaches 1; the floor keeps the bucket's gradient finite there.
        floor = 1e-15 if self._exact == torch.float64 else 1e-6
        rest_N1 = (1.0 - probs_NM.sum(-1, keepdim=True)).clamp_min(floor)
        teacher_rest_N1 = teacher.log_rest_N.to(self._exact)[:, None]
        # If the teacher has no remaining mass, all its tokens are listed (or drawn), and there is no bucket.
        student_rest_N1 = rest_N1.log().masked_fill(teacher_rest_N1.isneginf(), -torch.inf)
        value, g_NM = self._divergence(
            torch.cat([teacher_NM, teacher_rest_N1], dim=1),
            torch.cat([student_NM, student_rest_N1], dim=1),
            True,
            teacher.present_N,
        )
        return value, g_NM[:, :-1] - g_NM[:, -1:] * probs_NM / rest_N1

    def _special(
        self,
        ids_NC: Tensor,
        student: tuple[Tensor, Tensor],
        unused_NM: Tensor,
        g_NM: Tensor,
        share_N1: Tensor,
        everywhere_N1: Tensor,
    ) -> Tensor:
        """∂loss/∂z at the listed tokens and the label; elsewhere it is a multiple of the student's probabilities."""
        logprobs_NC, student_NC = student
        # If the label is listed, its column includes that token's gradient.
        is_label_NM = (ids_NC[:, :-1] == self._target_N1) & ~unused_NM
        label_g_N1 = (g_NM * is_label_NM).sum(-1, keepdim=True)
        special_NC = self._kd_share * torch.cat([g_NM, label_g_N1], dim=1)
        special_NC[:, :-1] -= share_N1 * is_label_NM
        special_NC[:, -1:] -= share_N1
        special_NC += share_N1 * logprobs_NC.exp() + everywhere_N1 * student_NC.exp()
        # Unused places repeat the first token, and must write the same value.
        special_NC[:, :-1] = torch.where(unused_NM, special_NC[:, :1], special_NC[:, :-1])
        return special_NC

    def _divergence(
        self, teacher_NM: Tensor, student_NM: Tensor, has_bucket: bool, present_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(Σ divergence over rows with a signal, its gradient with respect to the student's log-probabilities)."""
        with torch.enable_grad():
            student_NM = student_NM.detach().requires_grad_()
            value_N = self._objective.divergence(teacher_NM, student_NM, has_bucket, self._part.rows)
            value = (value_N * present_N).sum()
            (g_NM,) = torch.autograd.grad(value, student_NM)
        return value.detach(), g_NM
