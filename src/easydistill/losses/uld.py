"""Universal logit distillation: Σ |sorted p_T − sorted p_S| (Boizard et al., 2024), the baseline across tokenizers.

Probabilities are compared by rank, regardless of their tokens: the i-th largest of one with the i-th of the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from easydistill.contracts.loss import DistillationConfig, Outcomes

if TYPE_CHECKING:
    from torch import Tensor


class Config(DistillationConfig):
    """L1 distance of sorted probabilities."""

    identity_name = "loss.uld"

    by_rank: ClassVar[bool] = True

    distillation_type: Literal["uld"]
    """Universal logit distillation: compares probabilities by rank, regardless of their tokens."""
    tail: Literal["ignore"] = "ignore"
    """Only listed ranks are compared."""


def divergence(config: Config, teacher_NM: Tensor, student_NM: Tensor, outcomes: Outcomes) -> Tensor:
    """Columns are sorted, most probable first."""
    return (teacher_NM.exp() - student_NM.exp()).abs().sum(-1)
