"""Rows of tokens → micro-batches: padded batches of similar length, or packs without attention across rows.

Everything here depends only on the rows, the seed and the epoch, so a resumed run sees exactly the batches of an
uninterrupted one.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad as pad_right
from torch.utils.data import Dataset, Sampler

from easydistill.config.training import TrainerConfig
from easydistill.data.batches import padded
from easydistill.data.tokens import Ids, Mask, TokenIds, Tokens
from easydistill.methods.sft.items import Items

IGNORE = -100
BOUNDS = ("cu_seq_lens_q", "max_length_q")
"""transformers' names for the bounds of the rows in one long sequence, and for the length of the longest."""
ROW_BOUNDS = "row_bounds"
"""The bounds of rows that share their beginning (`flat_batches.py`)."""
MEGABATCHES = 8
"""Rows are sorted by length within windows of this many optimiser steps; wider windows pad less and mix less."""


class TokenRow(Tokens):
    """A tokenised row; `mask` says of each token whether it is learned (from the output of the one before it).

    Args:
        wrote_itself: whether the answer is the student's own: its tokens count in the divergence, but are not labels.
        images: the digests of the row's images, in the order of their tokens.
    """

    __slots__ = ("id", "images", "wrote_itself")

    def __init__(
        self, id: str, ids: TokenIds, mask: Mask, wrote_itself: bool = False, images: tuple[str, ...] = ()
    ) -> None:
        super().__init__(ids, mask)
        self.id = id
        self.wrote_itself = wrote_itself
        self.images = images

    def labels(self) -> Ids:
        """[T]: token ids where they are learned, −100 elsewhere and on the first token, which nothing predicts."""
        return np.where(self.learned, self.ids_T, np.int32(IGNORE))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.id, self.ids_T.tobytes(), self.mask_T.tobytes(), self.wrote_itself, self.images)


def _restored(id: str, ids: bytes, mask: bytes, wrote_itself: bool, images: tuple[str, ...] = ()) -> TokenRow:
    return TokenRow(id, np.frombuffer(ids, np.int32), np.frombuffer(mask, np.bool_), wrote_itself, images)


class RowDataset(Dataset[list[TokenRow]]):
    """Each item is a list of rows: a single row, or the rows of a pack."""

    def __init__(self, items: Sequence[list[TokenRow]]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> list[TokenRow]:
        return self.items[index]

    def lengths(self) -> list[int]:
        return [sum(len(row) for row in item) for item in self.items]


def pack(rows: Sequence[TokenRow], max_length: int) -> Items[TokenRow]:
    """Packs of at most `max_length` tokens: best fit, longest rows first."""
    by_room: dict[int, list[list[int]]] = {}
    packs: list[list[int]] = []
    sizes = [(len(row), row.id) for row in rows]
    for number in sorted(range(len(rows)), key=lambda number: (-sizes[number][0], sizes[number][1])):
        size, _ = sizes[number]
        room = min((space for space in by_room if space >= size), default=None)
        if room is None:
            target: list[int] = []
            packs.append(target)
            room = max(max_length, size)
        else:
            target = by_room[room].pop()
            if not by_room[room]:
                del by_room[room]
        target.append(number)
        by_room.setdefault(room - size, []).append(target)
    return Items(rows, packs)


def collate(items: Sequence[list[TokenRow]], pad: int, multiple: int = 1) -> dict[str, torch.Tensor]:
    """One micro-batch, padded to a multiple of `multiple` tokens.

    Single rows are padded on the right and need no attention mask: causal attention does not look ahead, and padding
    is not learned. The rows of a pack are concatenated, with positions that restart at every row, from which
    transformers derives attention that stays within the rows.

    `learned_N` and `target_N` say what is learned: the output at position `learned_N` of the flattened batch predicts
    `target_N`. They are made here because finding them on a GPU would make the CPU wait for it.
    """
    ids_BT = torch.from_numpy(padded([np.concatenate([row.ids_T for row in item]) for item in items], pad))
    labels_BT = torch.from_numpy(padded([np.concatenate([row.labels() for row in item]) for item in items], IGNORE))
    if (more := -ids_BT.shape[1] % multiple) > 0:
        ids_BT, labels_BT = pad_right(ids_BT, (0, more), value=pad), pad_right(labels_BT, (0, more), value=IGNORE)
    batch = {"input_ids": ids_BT, "labels": labels_BT, **learned(labels_BT)}
    if any(len(item) > 1 for item in items):
        positions = np.stack([_positions(item, ids_BT.shape[1]) for item in items])
        batch["position_ids"] = torch.from_numpy(positions)
    return batch


def learned(labels_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """`learned_N` and `target_N` of a batch's labels: the output at t predicts the label at t+1.

    The first label of a row is −100, so no target is found across rows.
    """
    labels = labels_BT.flatten()
    at_N = (labels != IGNORE).nonzero().squeeze(1)
    return {"learned_N": at_N - 1, "target_N": labels[at_N]}


def unlearned(batch: Mapping[str, torch.Tensor], seen: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """The same micro-batch without anything to learn.

    Args:
        seen: names of what the model is given with images.
    """
    of_rows = {"input_ids", "position_ids", *BOUNDS, ROW_BOUNDS, *seen}
    found = {name: value if name in of_rows else value[:0] for name, value in batch.items()}
    return {**found, "labels": torch.full_like(batch["labels"], IGNORE)}


def _positions(item: Sequence[TokenRow], width: int) -> NDArray[np.int64]:
    """[width]: positions that restart at every row. Padding forms one more segment."""
    lengths = [len(row) for row in item]
    return np.concatenate([np.arange(length) for length in (*lengths, width - sum(lengths))])


class EpochSampler(Sampler[int]):
    """The order of items in each epoch, determined by seed and epoch alone.

    Args:
        lengths: tokens of each item.
        batch_size: items per micro-batch.
        window: number of items within which similar lengths are grouped; 0 only shuffles.
        seed: seed of the shuffles.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, window: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._window = window
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(f"{self._seed}:{self._epoch}")
        order = list(range(len(self._lengths)))
        generator.shuffle(order)
        if not self._window:
            return iter(order)
        batches: list[list[int]] = []
        for start in range(0, len(order), self._window):
            window = sorted(order[start : start + self._window], key=lambda index: self._lengths[index], reverse=True)
            batches += [window[at : at + self._batch_size] for at in range(0, len(window), self._batch_size)]
        # A short batch must stay last, or the data loader would split all batches after it differently.
        short = [batch for batch in batches if len(batch) < self._batch_size]
        full = [batch for batch in batches if len(batch) == self._batch_size]
        generator.shuffle(full)
        return iter([index for batch in [*full, *short] for index in batch])


def epoch_sampler(lengths: Sequence[int], config: TrainerConfig, *, grouped: bool) -> EpochSampler:
    """The sampler for a `training` section.

    Args:
        lengths: tokens of each item.
        grouped: whether to batch items of similar length.
    """
    batch = config.per_device_train_batch_size
    window = MEGABATCHES * batch * config.gradient_accumulation_steps
    return EpochSampler(lengths, batch, window if grouped else 0, config.seed)
