"""Marks of a turn that say whether it is learned."""

from __future__ import annotations

from typing import Any

FLAGS = ("weight", "loss", "train", "trainable", "loss_weight", "loss_scale", "train_on_turn", "output_with_loss")
_OFF = ("false", "0", "0.0", "no")


def is_off(value: Any) -> bool:
    """Whether a mark, whose type may be any, says no."""
    if isinstance(value, str):
        return value.strip().lower() in _OFF
    return isinstance(value, bool | int | float) and not value


def is_on(value: Any) -> bool:
    """Whether it says yes. A weight between both is neither."""
    if isinstance(value, str):
        return value.strip().lower() in ("true", "1", "1.0", "yes", "")
    return value is True or value == 1
