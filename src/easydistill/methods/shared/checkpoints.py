"""Which checkpoints are complete, which of them is the newest, and which may be removed.

A checkpoint is a directory `checkpoint-<step>`; it counts once its marker file exists, which is written last.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

WHOLE_COPIES = "ddp"
"""The strategy of a process alone, too."""
WHOLE = "whole.json"
"""Marker file, written last; a checkpoint without it was cut off by a kill."""


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was made."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written completely."""
    return (checkpoint / WHOLE).is_file()


def mark_whole(checkpoint: Path, ranks: int = 1, strategy: str = WHOLE_COPIES) -> None:
    """Mark a checkpoint as complete.

    Args:
        ranks: processes that train together, each of which has written its part.
        strategy: how they share the model.
    """
    about: dict[str, int | str] = {"step": step_of(checkpoint)}
    if ranks > 1:
        about["ranks"] = ranks
    if strategy != WHOLE_COPIES:
        about["strategy"] = strategy
    # At once, with its content: a kill may come at any moment.
    made = checkpoint / f"{WHOLE}.tmp"
    made.write_text(json.dumps(about), encoding="utf-8")
    made.replace(checkpoint / WHOLE)


def ranks_of(checkpoint: Path) -> int:
    """Processes that wrote a complete checkpoint."""
    return int(_about(checkpoint).get("ranks", 1))


def strategy_of(checkpoint: Path) -> str:
    """How the processes shared the model that wrote a complete checkpoint."""
    return str(_about(checkpoint).get("strategy", WHOLE_COPIES))


def _about(checkpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))
    return found


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
