"""Which checkpoints are complete, which of them is the newest, and which may be removed.

A checkpoint is a directory `checkpoint-<step>`; it counts once its marker file exists, which is written last.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

WHOLE = "whole.json"
"""Marker file, written last; a checkpoint without it was cut off by a kill."""


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was made."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written completely."""
    return (checkpoint / WHOLE).is_file()


def mark_whole(checkpoint: Path, ranks: int = 1) -> None:
    """Mark a checkpoint as complete.

    Args:
        ranks: processes that train together, each of which has written its part.
    """
    about = {"step": step_of(checkpoint), **({"ranks": ranks} if ranks > 1 else {})}
    (checkpoint / WHOLE).write_text(json.dumps(about), encoding="utf-8")


def ranks_of(checkpoint: Path) -> int:
    """Processes that wrote a complete checkpoint."""
    return int(json.loads((checkpoint / WHOLE).read_text(encoding="utf-8")).get("ranks", 1))


def last_whole_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint; incomplete ones are removed."""
    for path in directory.glob("checkpoint-*"):
        if not is_whole(path):
            shutil.rmtree(path)
    return max(directory.glob("checkpoint-*"), key=step_of, default=None)


def rotate(directory: Path, limit: int) -> None:
    """Remove all complete checkpoints but the newest `limit`."""
    whole = sorted(filter(is_whole, directory.glob("checkpoint-*")), key=step_of)
    for old in whole[:-limit]:
        # The marker goes first, so that a kill in between does not leave a checkpoint that looks complete.
        (old / WHOLE).unlink()
        shutil.rmtree(old)
