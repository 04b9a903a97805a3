"""A training that is killed, within this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import easydistill
from easydistill.methods.sft import trainer as supervised
from tests.support.pictures import picture


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


def resumes_unless_an_image_changed(
    monkeypatch: pytest.MonkeyPatch, module: Any, folders: Sequence[Path], configs: Sequence[Any], changes: bool
) -> None:
    """Run the first of two equal jobs, and the second, which was killed, again: the students are the same.

    Args:
        module: whose `last_whole_checkpoint` tells what a training goes on from.
        changes: whether an image is changed first, in both; the second must then begin anew.
    """
    checkpoints = next((folders[1] / "run" / "stages").glob("*-train")) / "checkpoints"
    assert [path.name for path in checkpoints.glob("*/checkpoint-*")]
    if changes:
        for folder in folders:
            (folder / "3.png").write_bytes(picture((250, 250, 0), (24, 24)))
    started: list[Path | None] = []
    resumed = module.last_whole_checkpoint

    def noted(folder: Path) -> Path | None:
        started.append(resumed(folder))
        return started[-1]

    monkeypatch.setattr(module, "last_whole_checkpoint", noted)
    for config in configs:
        easydistill.run(config)
    assert started[0] is None and (started[1] is None) == changes
    whole, killed = (load_file(folder / "run" / "student" / "model.safetensors") for folder in folders)
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
