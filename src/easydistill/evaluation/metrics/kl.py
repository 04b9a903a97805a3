"""Forward Kullback–Leibler divergence on the teacher's answers, in nats per token.

KL(p_T ‖ p_S) = (1/N) Σ_t Σ_v p_T(v) (log p_T(v) − log p_S(v)), over the whole shared vocabulary.
"""

from __future__ import annotations

from easydistill.contracts.metric import TokenMean, TokenRows


class Metric(TokenMean):
    def total(self, rows: TokenRows) -> float:
        assert rows.teacher_logprobs_NV is not None
        assert rows.shared_student_logprobs_NV is not None
        from torch.nn.functional import kl_div

        student_NV, teacher_NV = rows.shared_student_logprobs_NV, rows.teacher_logprobs_NV
        return float(kl_div(student_NV, teacher_NV, reduction="sum", log_target=True).double())
