"""What a strategy does around a training; this one is `ddp`, and a process alone: each holds the whole student.

A trainer calls, in this order: `loading` around making the student, `arguments` for transformers' Trainer, `prepared`
with the trainer before its first step, and `whole` after its last one. Between `loading` and `prepared` the model is an
ordinary module: it is checked, packed and given its adapters, and `gathering` and `kept_as_it_is` are called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from easydistill.config.launch import LaunchConfig
from easydistill.config.training import TrainerConfig

if TYPE_CHECKING:
    import torch

    from easydistill.methods.shared.strategies.gathered import Gathered

T = TypeVar("T")


class Strategy:
    """A whole copy of the student in each process."""

    shards: ClassVar[bool] = False
    """Whether a process holds only a part of the weights while it trains."""

    compiles: ClassVar[bool] = True
    """Whether layers may be compiled."""

    def __init__(self, launch: LaunchConfig) -> None:
        self.launch = launch
        self.name: str = launch.strategy
        """Marks its checkpoints, which no other strategy reads."""

    def loading(self) -> AbstractContextManager[None]:
        """A context for making the student, in every process."""
        return contextlib.nullcontext()

    def decided(self, ask: Callable[[], T]) -> T:
        """What is found out with the student's weights, the same in all processes; all call it."""
        return ask()

    def arguments(self, config: TrainerConfig) -> dict[str, Any]:
        """What transformers' TrainingArguments take besides those that all trainings take."""
        return {}

    def gathering(self, model: Any, computed: torch.dtype | None) -> Gathered | None:
        """The model that a trainer is about to train, to compute with all its weights; None where it has them itself.

        Args:
            model: not prepared yet.
            computed: the number type of autocast; None without.
        """
        return None

    def kept_as_it_is(self, model: Any, computed: torch.dtype | None) -> Gathered | None:
        """A copy of `model` that is not trained, in parts too; None where each process may keep its own.

        Args:
            model: not prepared yet.
            computed: as for `gathering`.
        """
        return None

    def beside(self, model: Any) -> Any:
        """`model`, which every process holds whole and which computes beside the trained one."""
        return model

    def prepared(self, trainer: Any) -> None:
        """Take part in a trainer (transformers' or a subclass) that is about to train."""

    def whole(self, trainer: Any, model: Any) -> None:
        """Make `model`, which the trainer has trained, an ordinary module with all its weights, in the first process.

        All processes call it. In the others it has its structure alone.
        """


_current = Strategy(LaunchConfig())


def strategy() -> Strategy:
    """The strategy of this process."""
    return _current


def use(launch: LaunchConfig) -> None:
    """Set this process's strategy, before it loads a model."""
    global _current
    _current = _strategy_of(launch)


def _strategy_of(launch: LaunchConfig) -> Strategy:
    if launch.strategy == "fsdp2":
        from easydistill.methods.shared.strategies.fsdp2 import Fsdp2

        return Fsdp2(launch)
    if launch.uses_deepspeed:
        from easydistill.methods.shared.strategies.deepspeed import zero

        return zero(launch)
    return Strategy(launch)
