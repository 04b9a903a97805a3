"""A metric that is a plain function, of texts or of distributions:

    def length_ratio(answer, reference): return len(answer.split()) / max(1, len(reference.split()))
    def entropy(student): return -(student.exp() * student).sum(-1)

The first scores each generated `answer` against the row's own (`reference`), and its mean is the metric. The second is
given log-probabilities over the vocabulary for N answer tokens, [N, V], and returns a value for each, [N]; `target` is
the tokens themselves. One without `teacher` measures the student alone.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar, Literal

from easydistill.config.plain_functions import PlainFunction
from easydistill.contracts.metric import MetricConfig, TokenMean, TokenRows
from easydistill.plain_files import PlainFile, PlainFileError, Reference

EXAMPLE = "def {name}(answer, reference): return float(answer.strip() == reference.strip())"
_TEXTS, _TOKENS = ("answer", "reference"), ("teacher", "student", "target")


class FunctionMetricConfig(MetricConfig):
    """A metric function of a file of the user's."""


def module_of(call: Callable[..., Any], file: PlainFile, reference: Reference) -> ModuleType:
    """The metric that a function is.

    Raises:
        PlainFileError: it cannot be called as a metric.
    """
    function = PlainFunction(call, file, reference)
    if "answer" in function.given:
        function.check_named(_TEXTS)
        made = _of_texts(function)
    elif "student" in function.given:
        function.check_named(_TOKENS)
        made = _of_tokens(function)
    else:
        raise PlainFileError("a metric has a parameter `answer`, or `student`, and this function has none of them")
    return function.module(Config=function.config(FunctionMetricConfig), Metric=made, MEASURED="named")


def _of_texts(function: PlainFunction) -> type:
    class Metric:
        kind: ClassVar[Literal["answers"]] = "answers"
        needs_teacher = False

        def __init__(self, config: Any) -> None:
            self._settings = function.chosen(config)

        def score(self, answer: str, reference: str) -> float:
            texts = {"answer": answer, "reference": reference}
            with function.running():
                return float(function.call(**function.taken(texts), **self._settings))

    return Metric


def _of_tokens(function: PlainFunction) -> type:
    compares = "teacher" in function.given

    class Metric(TokenMean):
        needs_teacher = compares

        def __init__(self, config: Any) -> None:
            super().__init__()
            self._settings = function.chosen(config)

        def total(self, rows: TokenRows) -> float:
            student = rows.shared_student_logprobs_NV if compares else rows.student_logprobs_NV
            values = {"teacher": rows.teacher_logprobs_NV, "student": student, "target": rows.target_N}
            with function.running():
                found = function.call(**function.taken(values), **self._settings)
            if getattr(found, "shape", None) != rows.target_N.shape:
                raise function.wrong(f"must return a value for each token, [{len(rows.target_N)}]")
            return float(found.sum())

    return Metric
