"""Adaptive KL: w · forward KL + (1 − w) · reverse KL, with w from where the two differ (Wu et al., COLING 2025).

The head is the smallest set of the teacher's most probable tokens with mass μ; w = g_head / (g_head + g_tail), where
g sums |p_T − p_S| over the set. Forward KL works on the head first, reverse KL on the tail, so each gets the weight of
the part that is further off. Gradients do not flow through w.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from easydistill.config.base import PositiveShare
from easydistill.contracts.loss import Outcomes, WholeMassConfig, expected_ratio
from easydistill.models.prefix_sum import prefix_sum

if TYPE_CHECKING:
    from torch import Tensor


class Config(WholeMassConfig):
    """Forward and reverse KL, weighted token by token."""

    identity_name = "loss.adaptive_kld"

    distillation_type: Literal["adaptive_kld"]
    """Adaptive KL: forward KL where mostly the teacher's probable tokens (its head) differ, reverse KL where the others
    do."""
    head_mass: PositiveShare = 0.5
    """μ: the head is the smallest set of most probable tokens that together have this probability."""


def divergence(config: Config, teacher_NM: Tensor, student_NM: Tensor, outcomes: Outcomes) -> Tensor:
    share_N = head_share(teacher_NM, student_NM, config.head_mass, outcomes.has_bucket)
    forward_N = expected_ratio(teacher_NM, student_NM)
    return share_N * forward_N + (1 - share_N) * expected_ratio(student_NM, teacher_NM)


def head_share(teacher_NM: Tensor, student_NM: Tensor, head_mass: float, has_bucket: bool) -> Tensor:
    """The weight w of each row, [N], without gradient. A bucket always belongs to the tail."""
    teacher_NM, student_NM = teacher_NM.detach().exp(), student_NM.detach().exp()
    gap_NM = (teacher_NM - student_NM).abs()
    listed_NM = teacher_NM[:, :-1] if has_bucket else teacher_NM
    sorted_NM, order_NM = listed_NM.sort(dim=-1, descending=True, stable=True)
    in_head_NM = (prefix_sum(sorted_NM) - sorted_NM) < head_mass
    head_gap_N = (gap_NM.gather(1, order_NM) * in_head_NM).sum(-1)
    total_N = gap_NM.sum(-1)
    even_N = total_N == 0
    return (head_gap_N / total_N.masked_fill(even_N, 1.0)).masked_fill(even_N, 0.5)
