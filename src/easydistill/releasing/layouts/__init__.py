"""How rows are laid out in columns. A layout is asked to `fit` all rows before it makes the first table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from easydistill.data.images import ImageStore
from easydistill.data.records import Sample
from easydistill.releasing.config import ReleaseConfig


class Layout(Protocol):
    """One schema."""

    unit: str
    """What a row of a file is, in the plural."""

    def why_not(self, sample: Sample) -> str | None:
        """Why the schema cannot hold a row; None if it can."""

    def rows(self, samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
        """The rows of a file."""

    def fit(self, parts: Sequence[Sequence[Sample]]) -> None:
        """Make the columns hold the rows of all splits."""

    def table(self, rows: Sequence[dict[str, Any]]) -> Any:
        """Rows as a pyarrow table, of one schema for all rows that were fitted."""

    def loosen(self, column: str) -> None:
        """Write a column as JSON: a type that was fitted to it does not hold all of its values after all."""


def layout_of(config: ReleaseConfig, images: ImageStore, judge: str | None) -> Layout:
    """The layout of a config.

    Args:
        images: holds those of the rows.
        judge: the model that gave the scores, where rows do not say so.
    """
    if config.row_schema == "omnithought":
        from easydistill.releasing.layouts.omnithought import OmniThought

        return OmniThought(judge)
    from easydistill.releasing.layouts.plain import Chats, Instructions

    return Chats(images) if config.row_schema == "chat" else Instructions()
