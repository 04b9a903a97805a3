"""Skewed forward KL: KL(p_T ‖ α p_T + (1 − α) p_S) (DistiLLM, Ko et al., 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from easydistill.config.base import PositiveFloat
from easydistill.contracts.loss import DistillationConfig, Outcomes, expected_ratio, mixture

if TYPE_CHECKING:
    from torch import Tensor


class Config(DistillationConfig):
    """Forward KL to a mixture that holds a little of the teacher."""

    identity_name = "loss.skewed_forward_kld"

    distillation_type: Literal["skewed_forward_kld"]
    """Skewed forward KL: smaller, steadier gradients where the student is far off."""
    alpha: Annotated[PositiveFloat, Field(lt=1)] = 0.1
    """The teacher's share in the mixture."""


def divergence(config: Config, teacher_NM: Tensor, student_NM: Tensor, outcomes: Outcomes) -> Tensor:
    return expected_ratio(teacher_NM, mixture(teacher_NM, student_NM, config.alpha))
