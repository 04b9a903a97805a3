"""Cross-entropy of the student on the teacher's answers, in nats per token: −(1/N) Σ log p_S(y_t | x_<t)."""

from __future__ import annotations

from typing import ClassVar, Literal

from easydistill.contracts.metric import TokenRows


class Metric:
    kind: ClassVar[Literal["tokens"]] = "tokens"
    needs_teacher: ClassVar[bool] = False

    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0

    def update(self, rows: TokenRows) -> None:
        picked_N1 = rows.student_logprobs_NV.gather(1, rows.target_N[:, None])
        self._sum -= float(picked_N1.double().sum())
        self._count += len(rows.target_N)

    def value(self) -> float:
        return self._sum / self._count
