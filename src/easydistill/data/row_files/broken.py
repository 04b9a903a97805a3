"""What cannot be read: paths that name no rows, and rows, as far as their container tells."""

from __future__ import annotations

from typing import Any

from easydistill.errors import DataError


class PlaceError(DataError):
    """A path of rows that names nothing readable."""

    def __init__(self, where: str, problem: str, hint: str = "") -> None:
        super().__init__(f"{where}: {problem}" + (f"\n    → {hint}" if hint else ""))
        self.problem, self.hint = problem, hint


MALFORMED = "malformed_row"
"""Reason for which rows are rejected that have none of the known shapes."""


class MalformedRow(Exception):
    """Says why a row has none of the known shapes, or cannot be read whole.

    Attributes:
        reason: under which it is rejected.
    """

    def __init__(self, problem: str, reason: str = MALFORMED) -> None:
        super().__init__(problem)
        self.reason = reason


class BrokenRow(dict[str, Any]):
    """A line that is not JSON, or a line of CSV with other cells than the header; it will become a rejected row."""

    def __init__(self, problem: str, text: str) -> None:
        super().__init__(text=text)
        self.problem = problem
