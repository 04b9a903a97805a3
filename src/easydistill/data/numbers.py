"""Numbers in rows and files of others, which may be too large for a float."""

from __future__ import annotations

import math
from typing import Any


def as_float(value: Any, largest: float = math.inf) -> float | None:
    """A finite number as a float; None if the value is anything else, or its magnitude exceeds `largest`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and abs(number) <= largest else None
