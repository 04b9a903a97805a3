"""Contrastive distillation (DistiLLM-2, Ko et al., 2025).

Skewed forward KL on the teacher's answers pulls the student up where the teacher is; skewed reverse KL on the student's
own answers pushes it down where the teacher is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from easydistill.config.base import PositiveFloat
from easydistill.contracts.loss import Outcomes, WholeMassConfig, expected_ratio, mixture

if TYPE_CHECKING:
    from torch import Tensor


class Config(WholeMassConfig):
    """Skewed forward KL on the teacher's answers, skewed reverse KL on the student's."""

    identity_name = "loss.contrastive"

    needs_student_answers: ClassVar[bool] = True

    distillation_type: Literal["contrastive"]
    """Contrastive: learns from the teacher's answers and from the student's own."""
    alpha: Annotated[PositiveFloat, Field(lt=1)] = 0.1
    """How much of the model on the left of each divergence is mixed into the one on the right (skewed KL): a little
    keeps gradients steady."""


def divergence(config: Config, teacher_NM: Tensor, student_NM: Tensor, outcomes: Outcomes) -> Tensor:
    forward_N = expected_ratio(teacher_NM, mixture(teacher_NM, student_NM, config.alpha))
    if outcomes.student_wrote_N is None:
        return forward_N
    reverse_N = expected_ratio(student_NM, mixture(student_NM, teacher_NM, config.alpha))
    return reverse_N.where(outcomes.student_wrote_N, forward_N)
