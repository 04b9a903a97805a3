"""Forward Kullback–Leibler divergence on the teacher's answers, in nats per token.

KL(p_T ‖ p_S) = (1/N) Σ_t Σ_v p_T(v) (log p_T(v) − log p_S(v)), over the whole shared vocabulary.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from easydistill.contracts.metric import TokenRows


class Metric:
    kind: ClassVar[Literal["tokens"]] = "tokens"
    needs_teacher: ClassVar[bool] = True

    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0

    def update(self, rows: TokenRows) -> None:
        assert rows.teacher_logprobs_NV is not None
        assert rows.shared_student_logprobs_NV is not None
        from torch.nn.functional import kl_div

        self._sum += float(
            kl_div(rows.shared_student_logprobs_NV, rows.teacher_logprobs_NV, reduction="sum", log_target=True).double()
        )
        self._count += len(rows.target_N)

    def value(self) -> float:
        return self._sum / self._count
