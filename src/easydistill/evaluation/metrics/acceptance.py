"""How often the teacher would accept a token that the student drafts for it, at temperature 1.

In speculative sampling, a token drawn from the student's q is accepted with probability min(1, p_T(x) / q(x)), so the
share that is accepted is Σ_v min(p_T(v), q(v)) = 1 − TVD(p_T, q) (Leviathan, Kalman and Matias 2023, theorem 3.5),
here exact over the whole vocabulary. What q gives to tokens that the teacher does not have is rejected.
"""

from __future__ import annotations

from typing import Literal

from easydistill.contracts.metric import TokenMean, TokenRows

MEASURED: Literal["named"] = "named"


class Metric(TokenMean):
    def total(self, rows: TokenRows) -> float:
        assert rows.teacher_logprobs_NV is not None
        teacher_NV = rows.teacher_logprobs_NV
        student_NV = rows.student_logprobs_NV[:, : teacher_NV.shape[1]]
        return float(teacher_NV.minimum(student_NV).exp().sum(-1).double().sum())


def tokens_per_pass(acceptance: float, drafted: int) -> float:
    """Expected tokens of each pass of the teacher over `drafted` tokens: (1 − α^(γ+1)) / (1 − α), equation 1 there.

    It takes acceptances for independent and equally likely; where hard tokens stand together, it is a little more.
    """
    return sum(acceptance**accepted for accepted in range(drafted + 1))
