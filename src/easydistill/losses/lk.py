"""Negative log acceptance: −log Σ min(p_T, p_S) (LK losses, Samarin et al., 2026, arXiv 2602.23881).

Σ min(p_T, p_S) is the share of the student's drafts that the teacher accepts in speculative sampling. Its gradient is
that of the total variation distance divided by the acceptance, so it stays large where a weak draft is hardly accepted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from easydistill.contracts.loss import Outcomes, WholeMassConfig

if TYPE_CHECKING:
    from torch import Tensor


class Config(WholeMassConfig):
    """Negative log acceptance."""

    identity_name = "loss.lk"

    distillation_type: Literal["lk"]
    """Negative log acceptance: for a student that drafts for its teacher."""


def divergence(config: Config, teacher_NM: Tensor, student_NM: Tensor, outcomes: Outcomes) -> Tensor:
    return -teacher_NM.minimum(student_NM).logsumexp(-1)
