"""Numbers from files, of any size."""

from __future__ import annotations

from typing import Any

import pytest

from easydistill.data.numbers import as_float


@pytest.mark.parametrize(
    ("value", "found"),
    [(3, 3.0), (-0.5, -0.5), (True, None), ("3", None), (None, None), (float("inf"), None), (float("nan"), None)],
)
def test_only_numbers_are_numbers(value: Any, found: float | None) -> None:
    assert as_float(value) == found


def test_numbers_that_are_too_large_are_none() -> None:
    assert as_float(10**400) is None, "no float holds it"
    assert as_float(-1e31, 1e30) is None
    assert as_float(1e30, 1e30) == 1e30
