"""Rows of tokens: five bytes a token, and the same labels and batches as of lists."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch

from easydistill.data.batches import padded
from easydistill.methods.sft.batching import IGNORE, TokenRow, collate
from easydistill.signals.store import token_hash


def drawn(count: int) -> list[tuple[list[int], list[bool]]]:
    """Token ids and masks of random rows, the shortest of one token."""
    draw = random.Random(0)
    sizes = [1, *(draw.randrange(2, 40) for _ in range(count - 1))]
    return [([draw.randrange(200_000) for _ in range(n)], [draw.random() < 0.5 for _ in range(n)]) for n in sizes]


def labels_of(ids: list[int], mask: list[bool]) -> list[int]:
    """The labels of a row, token by token."""
    return [token if on and at else IGNORE for at, (token, on) in enumerate(zip(ids, mask, strict=True))]


@pytest.mark.parametrize(("ids", "mask"), drawn(12))
def test_a_row_gives_back_what_it_was_made_of(ids: list[int], mask: list[bool]) -> None:
    row = TokenRow("row", ids, mask, wrote_itself=True)
    again: TokenRow = pickle.loads(pickle.dumps(row))
    for one in (row, again):
        assert (one.id, one.ids, one.mask, one.wrote_itself, len(one)) == ("row", ids, mask, True, len(ids))
        assert one.labels().tolist() == labels_of(ids, mask)
        assert one.ids_T.nbytes + one.mask_T.nbytes == 5 * len(ids)


@pytest.mark.parametrize(("ids", "mask"), drawn(12))
def test_the_hash_of_a_row_does_not_depend_on_how_it_is_held(ids: list[int], mask: list[bool]) -> None:
    row = TokenRow("row", ids, mask)
    assert token_hash(row.ids_T, row.learned) == token_hash(ids, [False, *mask[1:]])


def test_batches_are_padded_as_lists_would_be() -> None:
    rows = drawn(9)
    items = [[TokenRow(str(at), *row) for at, row in enumerate(rows[start : start + 3])] for start in (0, 3, 6)]
    batch = collate(items, pad=7)
    width = max(sum(map(len, item)) for item in items)
    for at, item in enumerate(items):
        rest = width - sum(map(len, item))
        ids = [token for row in item for token in row.ids]
        labels = [label for row in item for label in labels_of(row.ids, row.mask)]
        positions = [at for length in (*map(len, item), rest) for at in range(length)]
        assert batch["input_ids"][at].tolist() == [*ids, *[7] * rest]
        assert batch["labels"][at].tolist() == [*labels, *[IGNORE] * rest]
        assert batch["position_ids"][at].tolist() == positions
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_lists_and_arrays_are_padded_alike() -> None:
    assert padded([[1, 2], np.array([3], np.int32)], 9).tolist() == [[1, 2], [3, 9]]
    assert padded([[True], [False, True]], False).tolist() == [[True, False], [False, True]]
