"""Our output layer with its losses on a device, against all logits in float64 on the CPU.

The errors are relative: of the loss to the loss, of a gradient to its largest entry.

Shapes: N rows, D hidden width, V vocabulary, M listed tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from easydistill.kernels.linear_cross_entropy import linear_cross_entropy
from easydistill.kernels.linear_distillation import Objective, Targets, linear_distillation
from easydistill.models.head import Head

ROWS, WIDTH, VOCABULARY, LISTED = 96, 64, 5003, 16
KD_RATIO, TEMPERATURE = 0.5, 2.0
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest relative error that rounding explains."""


@dataclass(frozen=True)
class _Inputs:
    hidden_ND: Tensor
    weight_VD: Tensor
    target_N: Tensor
    teacher: Targets


Loss = Callable[[Tensor, Tensor, _Inputs], Tensor]
"""(hidden states, weight of the output layer, the rest) → the loss."""


def errors(on: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Largest relative error of each loss and its gradients, with matrix products in `dtype`."""
    inputs = _inputs(dtype)
    found = {}
    for name, (ours, reference) in {
        "cross-entropy": (_our_cross_entropy, _cross_entropy),
        "divergence": (_our_divergence, _divergence),
    }.items():
        made = _with_gradients(ours, inputs, on, dtype)
        expected = _with_gradients(reference, inputs, torch.device("cpu"), torch.float64)
        found[name] = max(
            float((one.cpu().double() - other).abs().max() / other.abs().max())
            for one, other in zip(made, expected, strict=True)
        )
    return found


def _inputs(dtype: torch.dtype) -> _Inputs:
    """In float64, with values that `dtype` holds exactly."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).double()

    logweights_NM, ids_NM = (2 * normal(ROWS, VOCABULARY)).log_softmax(-1).topk(LISTED)
    rest_N = (-logweights_NM.exp().sum(-1)).log1p()
    every_N = torch.ones(ROWS, dtype=torch.bool)
    teacher = Targets(ids_NM, logweights_NM, rest_N, torch.zeros(ROWS, dtype=torch.float64), every_N, every_N)
    target_N = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    return _Inputs(normal(ROWS, WIDTH), normal(VOCABULARY, WIDTH) / 4, target_N, teacher)


def _with_gradients(loss: Loss, inputs: _Inputs, on: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The loss, and its gradients of hidden states and weight."""
    leaves = [value.to(on, dtype).requires_grad_() for value in (inputs.hidden_ND, inputs.weight_VD)]
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    targets = inputs.teacher
    moved = Targets(
        targets.ids_NM.to(on),
        targets.logweights_NM.to(on, exact),
        targets.log_rest_N.to(on, exact),
        targets.offset_N.to(on, exact),
        targets.present_N.to(on),
        targets.labelled_N.to(on),
    )
    value = loss(leaves[0], leaves[1], _Inputs(leaves[0], leaves[1], inputs.target_N.to(on), moved))
    return value.detach(), *torch.autograd.grad(value, leaves)


def _our_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, inputs: _Inputs) -> Tensor:
    return linear_cross_entropy(hidden_ND, Head(weight_VD), inputs.target_N)


def _cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, inputs: _Inputs) -> Tensor:
    return torch.nn.functional.cross_entropy(hidden_ND @ weight_VD.T, inputs.target_N, reduction="sum")


def _forward_kl(teacher_NM: Tensor, student_NM: Tensor) -> Tensor:
    return (teacher_NM.exp() * (teacher_NM - student_NM)).sum(-1)


def _our_divergence(hidden_ND: Tensor, weight_VD: Tensor, inputs: _Inputs) -> Tensor:
    objective = Objective(lambda teacher, student, bucket, rows: _forward_kl(teacher, student), KD_RATIO, TEMPERATURE)
    return linear_distillation(hidden_ND, Head(weight_VD), inputs.target_N, inputs.teacher, objective).total


def _divergence(hidden_ND: Tensor, weight_VD: Tensor, inputs: _Inputs) -> Tensor:
    """Forward KL over the listed tokens and one outcome for all others, with the cross-entropy."""
    student_NV = (hidden_ND @ weight_VD.T / TEMPERATURE).log_softmax(-1)
    listed_NM = student_NV.gather(1, inputs.teacher.ids_NM)
    rest_N1 = student_NV.scatter(1, inputs.teacher.ids_NM, -torch.inf).logsumexp(-1, keepdim=True)
    teacher_NM = torch.cat([inputs.teacher.logweights_NM, inputs.teacher.log_rest_N[:, None]], 1)
    divergence = _forward_kl(teacher_NM, torch.cat([listed_NM, rest_N1], 1)).sum()
    cross_entropy = _cross_entropy(hidden_ND, weight_VD, inputs)
    return (1 - KD_RATIO) * cross_entropy + KD_RATIO * TEMPERATURE**2 * divergence
