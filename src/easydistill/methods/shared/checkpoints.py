"""Which checkpoints are whole, which of them is the newest, and which may go.

A checkpoint is a directory `checkpoint-<step>`; it counts once its mark is there, which is written last.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

WHOLE = "whole.json"
"""Written into a checkpoint last; a checkpoint without it was torn by a kill."""


def step_of(checkpoint: Path) -> int:
    """After how many steps a checkpoint was made."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    return (checkpoint / WHOLE).is_file()


def mark_whole(checkpoint: Path) -> None:
    """Say that all of a checkpoint is there."""
    (checkpoint / WHOLE).write_text(json.dumps({"step": step_of(checkpoint)}), encoding="utf-8")


def last_whole_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that was written to its end; torn ones are removed."""
    for path in directory.glob("checkpoint-*"):
        if not is_whole(path):
            shutil.rmtree(path)
    return max(directory.glob("checkpoint-*"), key=step_of, default=None)


def rotate(directory: Path, limit: int) -> None:
    """Remove all whole checkpoints but the newest `limit`."""
    whole = sorted(filter(is_whole, directory.glob("checkpoint-*")), key=step_of)
    for old in whole[:-limit]:
        # The mark goes first, so that a kill in between leaves a torn checkpoint, not one that looks whole.
        (old / WHOLE).unlink()
        shutil.rmtree(old)
