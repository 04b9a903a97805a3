"""Reads a judge's scores from a row's `meta`, and the config type of a range of scores."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from easydistill.config.base import NonNegativeFloat, Unfit
from easydistill.data.records import Sample

LARGEST = 9
Score = Annotated[NonNegativeFloat, Field(le=LARGEST)]
"""A score from 0 to 9."""


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise Unfit(f"{value[0]:g} is above {value[1]:g}", "write the smaller bound first")
    return value


ScoreRange = Annotated[tuple[Score, Score], AfterValidator(_ascending)]
"""Smallest and largest score, both included."""
ANY: tuple[float, float] = (0, LARGEST)


class NotScored(Exception):
    """A row's score is missing or invalid."""

    def __init__(self, key: str, value: Any, expected: str) -> None:
        self.key = key
        super().__init__(f"there is no {key}" if value is None else f"{key} is {value!r}, not {expected}")


def score(row: Sample, key: str) -> float:
    """The row's score `key`, 0–9.

    Raises:
        NotScored: it is missing or invalid.
    """
    value: Any = row.meta.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST:
        raise NotScored(key, value, f"a score of 0 to {LARGEST}")
    return value


def verdict(row: Sample, key: str) -> bool:
    """The row's judgement `key`, 0 or 1.

    Raises:
        NotScored: it is missing or invalid.
    """
    value: Any = row.meta.get(key)
    if not isinstance(value, bool | int) or value not in (0, 1):
        raise NotScored(key, value, "0 or 1")
    return bool(value)
