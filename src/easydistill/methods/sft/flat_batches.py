"""Micro-batches of short rows as one sequence without padding, their common beginning once (`models/flat_rows.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from easydistill.methods.sft.batching import IGNORE, ROW_BOUNDS, TokenRow
from easydistill.models.flat_rows import LONGEST, FlatRows


def is_short(items: Sequence[list[TokenRow]]) -> bool:
    """Whether a micro-batch of single rows goes into one sequence."""
    return all(len(item) == 1 and len(item[0]) <= LONGEST for item in items)


def collate_short(items: Sequence[list[TokenRow]]) -> dict[str, torch.Tensor]:
    """One micro-batch [1, N]; `ROW_BOUNDS` has the tokens of the common beginning, then the further ones of each row.

    No learned token is part of the beginning, so rows keep labels of their own.
    """
    rows = [item[0] for item in items]
    learned = [np.flatnonzero(row.learned) for row in rows]
    flat = FlatRows.of([row.ids_T for row in rows], [int(at[0]) for at in learned if len(at)])
    shared = flat.layout.shared
    labels = np.concatenate([np.full(shared, IGNORE), *(row.labels()[shared:] for row in rows)]).astype(np.int64)
    row_N = torch.from_numpy(np.repeat(np.arange(len(rows)), [len(at) for at in learned]))
    token_N = torch.from_numpy(np.concatenate(learned))
    return {
        "input_ids": flat.ids_N[None],
        "position_ids": flat.positions[None],
        "labels": torch.from_numpy(labels)[None],
        "learned_N": flat.layout.places(row_N, token_N - 1),
        "target_N": flat.ids_N[flat.layout.places(row_N, token_N)],
        ROW_BOUNDS: torch.tensor([shared, *flat.layout.lengths]),
    }
