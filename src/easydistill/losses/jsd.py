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
    """Weight of the teacher in the mixture. The divergence, and so the size of a step, shrinks to 0 at both ends; see
    `scaled`."""
    scaled: bool = False
    """Divide by β (1 − β). The limits are then forward KL (β → 0) and reverse KL (β → 1), and a sweep over β keeps the
    size of a step; at β = 0.5 the loss is 4 times as large."""


def divergence(config: Config, teacher_NM: Tensor, student_NM: Tensor, outcomes: Outcomes) -> Tensor:
    middle_NM = mixture(teacher_NM, student_NM, config.beta)
    teacher_side_N = expected_ratio(teacher_NM, middle_NM)
    found_N = config.beta * teacher_side_N + (1 - config.beta) * expected_ratio(student_NM, middle_NM)
    return found_N / (config.beta * (1 - config.beta)) if config.scaled else found_N
