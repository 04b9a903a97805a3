"""Tokenised rows in memory: five bytes a token.

Shapes: T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Bools = NDArray[np.bool_]
TokenIds = Sequence[int] | Ids
Mask = Sequence[bool] | Bools


class Tokens:
    """Token ids, and for each whether it is learned: row t−1 of a model's output predicts token t.

    Args:
        ids: [T], below 2³¹.
        mask: [T].
    """

    __slots__ = ("ids_T", "mask_T")

    ids_T: Ids
    mask_T: Bools

    def __init__(self, ids: TokenIds, mask: Mask) -> None:
        self.ids_T = np.asarray(ids, np.int32)
        self.mask_T = np.asarray(mask, np.bool_)

    @property
    def ids(self) -> list[int]:
        """The ids as a new list."""
        ids: list[int] = self.ids_T.tolist()
        return ids

    @property
    def mask(self) -> list[bool]:
        """The mask as a new list."""
        mask: list[bool] = self.mask_T.tolist()
        return mask

    @property
    def learned(self) -> Bools:
        """[T]: the mask without the first token, which nothing predicts."""
        learned_T = self.mask_T.copy()
        learned_T[:1] = False
        return learned_T

    def __len__(self) -> int:
        return len(self.ids_T)
