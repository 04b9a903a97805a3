"""A stage's errors that are the machine's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from easydistill.engine.machine.explain import advice, machine_error
from easydistill.engine.machine.room import Needed, words
from easydistill.errors import EasyDistillError, OutOfMemory


@runtime_checkable
class Thrifty(Protocol):
    """A stage that knows settings with which it takes less memory."""

    def less_memory(self) -> list[str]:
        """Settings, a line each, the first ones change least. Loads no weights."""


@runtime_checkable
class Roomy(Protocol):
    """A stage that knows how much it is going to write."""

    def room(self) -> Needed:
        """What it writes. Loads no weights."""


def room_of(stages: Iterable[object]) -> Needed:
    """What stages write, as far as they know."""
    total = Needed()
    for stage in stages:
        # What cannot be read, the run itself tells.
        with contextlib.suppress(EasyDistillError):
            total += stage.room() if isinstance(stage, Roomy) else Needed()
    return total


def thrift_of(stage: object) -> list[str]:
    """Settings with which a stage takes less memory."""
    if not isinstance(stage, Thrifty):
        return []
    try:
        return stage.less_memory()
    except Exception:
        # Memory is short: what helps to say more may fail, too.
        return []


def _writes(stage: object) -> str:
    """What a stage writes in all, as a line; empty if it does not know."""
    try:
        needed = room_of([stage])
    except Exception:
        # An error is being told already.
        return ""
    most = max(needed.certain, needed.likely)
    return f"    in all this stage writes about {words(most)}, its checkpoints with it" if most else ""


@contextlib.contextmanager
def explained_machine(directory: Path, stage: object = None) -> Iterator[None]:
    """Raise what the machine has failed at as a `MachineError`.

    Args:
        directory: that is written to.
        stage: that runs; None: none does.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemory) and not error.advised:
            error.args = ("\n".join([str(error), *advice(thrift_of(stage))]),)
            error.advised = True
        found = machine_error(error, directory, lambda: thrift_of(stage), lambda: _writes(stage))
        if found is None or found is error:
            raise
        raise found from error
