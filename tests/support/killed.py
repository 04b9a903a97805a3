"""A training that is killed, within this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from easydistill.methods.sft import trainer as supervised


class Killed(BaseException):
    """In place of SIGKILL: nothing in the trainer may catch it."""


@contextlib.contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[None]:
    """What trains in here is killed at the end of a step, and must be."""
    original = supervised.Watch.on_step_end

    def dying(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step == step:
            raise Killed
        return original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(supervised.Watch, "on_step_end", dying)
        with pytest.raises(Killed):
            yield
