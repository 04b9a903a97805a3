"""Total variation distance: ½ Σ |p_T − p_S| (f-DISTILL, Wen et al., 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from easydistill.contracts.loss import DistillationConfig, Outcomes

if TYPE_CHECKING:
    from torch import Tensor


class Config(DistillationConfig):
    """Total variation distance."""

    identity_name = "loss.tvd"

    distillation_type: Literal["tvd"]
    """Total variation distance: how much probability is in the wrong place, wherever that is."""


def divergence(config: Config, teacher_NM: Tensor, student_NM: Tensor, outcomes: Outcomes) -> Tensor:
    return 0.5 * (teacher_NM.exp() - student_NM.exp()).abs().sum(-1)
