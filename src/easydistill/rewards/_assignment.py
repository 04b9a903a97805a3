"""The one-to-one assignment of largest total worth, exact."""

from __future__ import annotations

import math
from collections.abc import Sequence


def assign(worth: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Pairs (row, column), each row and each column at most once, as many as the shorter side has, of largest sum.

    The Hungarian method by shortest augmenting paths with potentials (Kuhn 1955; Jonker and Volgenant 1987), in
    O(shorter² · longer).

    Args:
        worth: what each pair is worth, finite; every row has the same length.
    """
    rows, columns = len(worth), len(worth[0]) if worth else 0
    if rows > columns:
        turned = [[worth[row][column] for row in range(rows)] for column in range(columns)]
        return sorted((row, column) for column, row in assign(turned))
    # Row and column 0 are none; owner[j] is the row that column j belongs to.
    of_row, of_column, owner = [0.0] * (rows + 1), [0.0] * (columns + 1), [0] * (columns + 1)
    for row in range(1, rows + 1):
        owner[0] = row
        _augment(worth, of_row, of_column, owner)
    return sorted((owner[column] - 1, column - 1) for column in range(1, columns + 1) if owner[column])


def _augment(worth: Sequence[Sequence[float]], of_row: list[float], of_column: list[float], owner: list[int]) -> None:
    """Give the row at column 0 a column, by the path that costs least; rows before it may change theirs."""
    size = len(owner)
    least, before, done = [math.inf] * size, [0] * size, [False] * size
    at = 0
    while owner[at]:
        done[at] = True
        row, step, following = owner[at], math.inf, 0
        for column in range(1, size):
            if done[column]:
                continue
            cost = -worth[row - 1][column - 1] - of_row[row] - of_column[column]
            if cost < least[column]:
                least[column], before[column] = cost, at
            if least[column] < step:
                step, following = least[column], column
        for column in range(size):
            if done[column]:
                of_row[owner[column]] += step
                of_column[column] -= step
            else:
                least[column] -= step
        at = following
    while at:
        owner[at] = owner[before[at]]
        at = before[at]
