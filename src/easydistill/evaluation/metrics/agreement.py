"""Top-1 agreement: the share of answer tokens at which teacher and student rank the same token first."""

from __future__ import annotations

from typing import ClassVar, Literal

from easydistill.contracts.metric import TokenRows


class Metric:
    kind: ClassVar[Literal["tokens"]] = "tokens"
    needs_teacher: ClassVar[bool] = True

    def __init__(self) -> None:
        self._agreed = 0
        self._count = 0

    def update(self, rows: TokenRows) -> None:
        assert rows.teacher_logprobs_NV is not None
        assert rows.shared_student_logprobs_NV is not None
        same_N = rows.teacher_logprobs_NV.argmax(-1) == rows.shared_student_logprobs_NV.argmax(-1)
        self._agreed += int(same_N.sum())
        self._count += len(rows.target_N)

    def value(self) -> float:
        return self._agreed / self._count
