"""Top-1 agreement: the share of answer tokens at which teacher and student rank the same token first."""

from __future__ import annotations

from easydistill.contracts.metric import TokenMean, TokenRows


class Metric(TokenMean):
    def total(self, rows: TokenRows) -> float:
        assert rows.teacher_logprobs_NV is not None
        assert rows.shared_student_logprobs_NV is not None
        same_N = rows.teacher_logprobs_NV.argmax(-1) == rows.shared_student_logprobs_NV.argmax(-1)
        return float(same_N.sum())
