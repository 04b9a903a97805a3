"""Skewed reverse KL: KL(p_S ‖ (1 − α) p_T + α p_S) (DistiLLM, Ko et al., 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from easydistill.config.base import PositiveFloat
from easydistill.contracts.loss import Outcomes, WholeMassConfig, expected_ratio, mixture

if TYPE_CHECKING:
    from torch import Tensor


class Config(WholeMassConfig):
    """Reverse KL to a mixture that holds a little of the student."""

    identity_name = "loss.skewed_reverse_kld"

    distillation_type: Literal["skewed_reverse_kld"]
    """Skewed reverse KL: finite even for tokens that the teacher finds impossible."""
    alpha: Annotated[PositiveFloat, Field(lt=1)] = 0.1
    """The student's share in the mixture."""


def divergence(config: Config, teacher_NM: Tensor, student_NM: Tensor, outcomes: Outcomes) -> Tensor:
    return expected_ratio(student_NM, mixture(student_NM, teacher_NM, config.alpha))
