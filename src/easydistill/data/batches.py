"""Batches of rows of similar length, in an order that depends only on the whole list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def batches_by_length(
    lengths: Sequence[int], max_rows: int | None, max_tokens: int, answer: int, *, equal: bool = False
) -> list[list[int]]:
    """Group row indices so that the rows of a batch have similar lengths.

    Args:
        lengths: tokens of each row, or of its prompt if answers are yet to be generated.
        max_rows: most rows in a batch; None for no limit.
        max_tokens: most tokens in a batch, padding included.
        answer: most tokens that a row may grow by.
        equal: give a batch rows of one length only, for models that read padding.
    """
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        # In ascending order, so each new row is the longest of its batch.
        width = lengths[index] + answer
        room = bool(batches) and (max_rows is None or len(batches[-1]) < max_rows)
        room = room and not (equal and lengths[batches[-1][0]] != lengths[index])
        if room and (len(batches[-1]) + 1) * width <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def padded(rows: Sequence[Sequence[Any] | NDArray[Any]], fill: int | bool) -> NDArray[Any]:
    """[rows, longest], int64 or bool: the rows with `fill` after them; causal attention does not look there."""
    import numpy as np

    width = max(map(len, rows))
    found: NDArray[Any] = np.full((len(rows), width), fill, np.bool_ if isinstance(fill, bool) else np.int64)
    for at, row in enumerate(rows):
        found[at, : len(row)] = row
    return found
