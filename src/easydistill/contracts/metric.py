"""What a metric is given."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
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
    row_N: Tensor
    """Which of the measured rows each token is of, counted from 0."""
    column_N: Tensor
    """Where in its row the token stands, counted from 0 at the row's first token."""
    position_N: Tensor
    """Which token of its answer it is, counted from 1; a chat with several answers counts each from 1."""

    def part(self, rows: slice) -> TokenRows:
        """Some of the tokens; nothing is copied."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return replace(self, **{name: value[rows] for name, value in values if value is not None})


class TokenObserver(Protocol):
    """Anything that looks at slices of tokens as they pass."""

    def update(self, rows: TokenRows) -> None: ...


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
