"""Rows that cannot be read, as far as their container tells."""

from __future__ import annotations

from typing import Any


class MalformedRow(Exception):
    """Says why a row has none of the known shapes."""


class BrokenRow(dict[str, Any]):
    """A line that is not JSON, or a line of CSV with other cells than the header; it will become a rejected row."""

    def __init__(self, problem: str, text: str) -> None:
        super().__init__(text=text)
        self.problem = problem
