"""A stage's errors that are the machine's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from easydistill.engine.machine.explain import machine_error


@runtime_checkable
class Thrifty(Protocol):
    """A stage that knows settings with which it takes less memory."""

    def less_memory(self) -> list[str]:
        """Settings, a line each, the first ones change least. Loads no weights."""


def thrift_of(stage: object) -> list[str]:
    """Settings with which a stage takes less memory."""
    if not isinstance(stage, Thrifty):
        return []
    try:
        return stage.less_memory()
    except Exception:
        # Memory is short: what helps to say more may fail, too.
        return []


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
        found = machine_error(error, directory, lambda: thrift_of(stage))
        if found is None or found is error:
            raise
        raise found from error
