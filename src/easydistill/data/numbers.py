"""Numbers that stand in rows and files of others: JSON's may be of any size, and Python's of infinitely many digits."""

from __future__ import annotations

import math
from typing import Any


def as_float(value: Any, largest: float = math.inf) -> float | None:
    """A finite number as a float; None where it is something else, or larger than `largest`, its sign aside."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and abs(number) <= largest else None
