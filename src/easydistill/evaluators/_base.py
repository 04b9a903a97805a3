"""What a metric is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor


@dataclass(frozen=True)
class TokenRows:
    """A slice of N answer tokens. Row n of each distribution predicts `target_N[n]`."""

    target_N: Tensor
    student_logprobs_NV: Tensor
    """float32 log-probabilities over the student's whole vocabulary."""
    shared_student_logprobs_NV: Tensor | None
    """The same over the tokens that teacher and student share (their padding differs); None without a teacher."""
    teacher_logprobs_NV: Tensor | None
    """The teacher's, over the shared tokens; None without a teacher."""


class TokenMetric(Protocol):
    """Accumulates over slices of tokens."""

    kind: ClassVar[Literal["tokens"]]
    needs_teacher: ClassVar[bool]

    def update(self, rows: TokenRows) -> None: ...

    def value(self) -> float:
        """The mean over all tokens seen."""


class AnswerMetric(Protocol):
    """Scores one generated answer at a time."""

    kind: ClassVar[Literal["answers"]]
    needs_teacher: ClassVar[bool]

    def score(self, answer: str, reference: str) -> float: ...
