"""What a metric is, and what it receives.

Metrics of kind "tokens" compare distributions over the tokens of the teacher's answers, a slice at a time; metrics of
kind "answers" score generated texts, one at a time; metrics of kind "images" compare what a row's images change.
Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from easydistill.config.base import Section
from easydistill.registry import Contract

if TYPE_CHECKING:
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
    """Index of the token's row among the measured rows."""
    column_N: Tensor
    """Index of the token within its row."""
    position_N: Tensor
    """Number of the token within its answer, from 1; every answer of a chat starts at 1."""

    def part(self, rows: slice) -> TokenRows:
        """A slice of the tokens; nothing is copied."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return replace(self, **{name: value[rows] for name, value in values if value is not None})


class TokenObserver(Protocol):
    """Receives slices of tokens as they are evaluated."""

    def update(self, rows: TokenRows) -> None: ...


class TokenMetric(Protocol):
    """Accumulates over slices of tokens."""

    kind: ClassVar[Literal["tokens"]]
    needs_teacher: ClassVar[bool]

    def update(self, rows: TokenRows) -> None: ...

    def value(self) -> float:
        """The mean over all tokens seen."""


class TokenMean:
    """A `TokenMetric` that is a mean over all tokens: a subclass gives the `total` of a slice."""

    kind: ClassVar[Literal["tokens"]] = "tokens"
    needs_teacher: ClassVar[bool] = True

    def __init__(self) -> None:
        self._total = 0.0
        self._count = 0

    def total(self, rows: TokenRows) -> float:
        raise NotImplementedError

    def update(self, rows: TokenRows) -> None:
        self._total += self.total(rows)
        self._count += len(rows.target_N)

    def value(self) -> float:
        return self._total / self._count


class AnswerMetric(Protocol):
    """Scores one generated answer at a time."""

    kind: ClassVar[Literal["answers"]]
    needs_teacher: ClassVar[bool]

    def score(self, answer: str, reference: str) -> float: ...


class ImageMetric(Protocol):
    """Compares the student's cross-entropy with the rows' own images to that with the images of other rows."""

    kind: ClassVar[Literal["images"]]
    needs_teacher: ClassVar[bool]

    def value(self, own: float, other: float) -> float:
        """Of two means over the same answer tokens, in nats."""


class MetricConfig(Section):
    """A metric's parameters; most have none."""


class MetricModule(Protocol):
    """A module registered as a metric. It loads no torch when it is imported."""

    Metric: type
    """A `TokenMetric`, an `AnswerMetric` or an `ImageMetric`, created for each measured model: `Metric()`, or
    `Metric(config)` if the module declares a `Config`."""


class MetricDefaults:
    """What a metric's module may also declare."""

    Config: type[MetricConfig] = MetricConfig
    """Its parameters, the metric's section in `evaluation.metrics`."""

    MEASURED: Literal["always", "images", "named"] = "always"
    """Where it is measured unless metrics are named: always, of students that see images, or not at all."""


def make_metric(module: ModuleType, config: MetricConfig) -> Any:
    """Create the metric of a checked module."""
    return module.Metric() if module.Config is MetricConfig else module.Metric(config)


_METHODS = {"tokens": ("update", "value"), "answers": ("score",), "images": ("value",)}


def _check(name: str, module: ModuleType) -> list[str]:
    metric = module.Metric
    kind = getattr(metric, "kind", None)
    if kind not in _METHODS:
        return ['`Metric.kind` must be "tokens", "answers" or "images"']
    problems = (
        [] if isinstance(getattr(metric, "needs_teacher", None), bool) else ["it declares no `Metric.needs_teacher`"]
    )
    missing = [method for method in _METHODS[kind] if not callable(getattr(metric, method, None))]
    return problems + [f"a metric of kind {kind} needs a method `{method}`" for method in missing]


METRIC = Contract(MetricModule, MetricDefaults, _check)
