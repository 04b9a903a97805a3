"""Reverse Kullback–Leibler divergence: Σ p_S (log p_S − log p_T) (MiniLLM, Gu et al., 2024).

It makes the student avoid what the teacher finds unlikely, at the price of variety.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from easydistill.contracts.loss import Outcomes, WholeMassConfig, expected_ratio

if TYPE_CHECKING:
    from torch import Tensor


class Config(WholeMassConfig):
    """Reverse KL."""

    identity_name = "loss.reverse_kld"

    distillation_type: Literal["reverse_kld"]
    """Reverse KL: the student avoids what the teacher finds unlikely."""


def divergence(config: Config, teacher_NM: Tensor, student_NM: Tensor, outcomes: Outcomes) -> Tensor:
    return expected_ratio(student_NM, teacher_NM)
