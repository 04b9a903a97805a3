"""Forward Kullback–Leibler divergence: Σ p_T (log p_T − log p_S) (Hinton et al., 2015; the paper's default).

It makes the student cover everything the teacher finds likely.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from easydistill.contracts.loss import DistillationConfig, Outcomes, expected_ratio

if TYPE_CHECKING:
    from torch import Tensor


class Config(DistillationConfig):
    """Forward KL."""

    identity_name = "loss.forward_kld"

    linear_in_teacher: ClassVar[bool] = True

    distillation_type: Literal["forward_kld"] = "forward_kld"
    """Forward KL: the student covers what the teacher finds likely."""


def divergence(config: Config, teacher_NM: Tensor, student_NM: Tensor, outcomes: Outcomes) -> Tensor:
    return expected_ratio(teacher_NM, student_NM)
