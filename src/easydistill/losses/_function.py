"""A loss that is a plain function of log-probabilities:

    def hellinger(teacher, student): return 1 - ((teacher + student) / 2).exp().sum(-1)

`teacher` and `student` are log-probabilities of the same M outcomes of N tokens, [N, M]; −inf is an outcome that has
none. `outcomes`, if it is a parameter, says what the columns are (`contracts.loss.Outcomes`). The function returns the
divergence of each token, [N], in nats, from which gradients flow to the student.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from easydistill.config.plain_functions import PlainFunction
from easydistill.contracts.loss import DistillationConfig, Outcomes
from easydistill.plain_files import PlainFile, PlainFileError, Reference

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLE = "def {name}(teacher, student): return 1 - ((teacher + student) / 2).exp().sum(-1)"
_GIVEN = ("teacher", "student", "outcomes")


def module_of(call: Callable[..., Any], file: PlainFile, reference: Reference) -> ModuleType:
    """The loss that a function is.

    Raises:
        PlainFileError: it cannot be called as a loss.
    """
    function = PlainFunction(call, file, reference)
    function.check_named(_GIVEN)
    for name in _GIVEN[:2]:
        if name not in function.given:
            raise PlainFileError(f"a loss has a parameter `{name}`, and this function has none")

    def divergence(config: DistillationConfig, teacher_NM: Tensor, student_NM: Tensor, outcomes: Outcomes) -> Tensor:
        """
        Raises:
            FunctionFailed: the function has, or it returned something else than a value for each token.
        """
        given = {"teacher": teacher_NM, "student": student_NM, "outcomes": outcomes}
        with function.running():
            found: Any = call(**function.taken(given), **function.chosen(config))
        shape = getattr(found, "shape", None)
        if shape is None or tuple(shape) != tuple(teacher_NM.shape[:1]):
            what = f"a {type(found).__name__}" if shape is None else f"the shape {list(shape)}"
            raise function.wrong(f"returned {what}: a value for each token is needed, [{len(teacher_NM)}]")
        if student_NM.requires_grad and not getattr(found, "requires_grad", False):
            raise function.wrong("returned values without a gradient: they must be computed from `student` by torch")
        return found  # type: ignore[no-any-return]

    return function.module(Config=function.config(DistillationConfig), divergence=divergence)
