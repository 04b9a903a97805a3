"""Numbers in rows and files of others, which may be too large for a float."""

from __future__ import annotations

import math
from typing import Any

PLACEHOLDER = -1000.0
"""No softmax over real logits gives a log-probability as low as this: it is a placeholder, such as −9999."""


def as_float(value: Any, largest: float = math.inf) -> float | None:
    """A finite number as a float; None if the value is anything else, or its magnitude exceeds `largest`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and abs(number) <= largest else None


def usable_logprob(value: Any) -> float:
    """A log-probability in nats; NaN if it is a placeholder for one (−9999, null) or not finite."""
    number = as_float(value)
    return math.nan if number is None or number <= PLACEHOLDER else number
