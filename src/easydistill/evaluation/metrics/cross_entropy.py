"""Cross-entropy of the student on the teacher's answers, in nats per token: −(1/N) Σ log p_S(y_t | x_<t)."""

from __future__ import annotations

from typing import ClassVar

from easydistill.contracts.metric import TokenMean, TokenRows


class Metric(TokenMean):
    needs_teacher: ClassVar[bool] = False

    def total(self, rows: TokenRows) -> float:
        picked_N1 = rows.student_logprobs_NV.gather(1, rows.target_N[:, None])
        return -float(picked_N1.double().sum())
