"""Generalised Jensen–Shannon divergence: β KL(p_T ‖ m) + (1 − β) KL(p_S ‖ m), m = β p_T + (1 − β) p_S (GKD, 2024).

It vanishes at both ends: for β → 0 it is β times forward KL, for β → 1 it is (1 − β) times reverse KL. Divided by
β (1 − β) (`scaled`), its limits are forward and reverse KL themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from easydistill.config.base import PositiveFloat
from easydistill.contracts.loss import Outcomes, WholeMassConfig, expected_ratio, mixture

if TYPE_CHECKING:
    from torch import Tensor


class Config(WholeMassConfig):
    """Jensen–Shannon divergence."""

    identity_name = "loss.jsd"

    distillation_type: Literal["jsd"]
    """Jensen–Shannon divergence: bounded, between forward and reverse KL."""
    beta: Annotated[PositiveFloat, Field(lt=1)] = 0.5
    """Weight of the teacher in the mixture with which both are compared: near 0 like forward KL, near 1 like reverse
    KL. Near both ends the loss becomes small, and so does a training step; see `scaled`."""
    scaled: bool = False
    """Divide by β (1 − β), so that the loss keeps its size for any β, and several can be compared. Near 0 and 1 it is
    then forward and reverse KL themselves; at β = 0.5 it is 4 times as large as without."""


def divergence(config: Config, teacher_NM: Tensor, student_NM: Tensor, outcomes: Outcomes) -> Tensor:
    middle_NM = mixture(teacher_NM, student_NM, config.beta)
    teacher_side_N = expected_ratio(teacher_NM, middle_NM)
    found_N = config.beta * teacher_side_N + (1 - config.beta) * expected_ratio(student_NM, middle_NM)
    return found_N / (config.beta * (1 - config.beta)) if config.scaled else found_N
