"""How long a training's rows are, and what its largest micro-batch holds: known from the first rows before it runs.

Rows are as long as their tokens, at most `max_length`; answers that are yet to be written are as long as they may be.
Micro-batches are made of rows of similar length (`methods/sft/batching.py`), so the largest holds the longest rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from easydistill.config.training import TrainerConfig

FLAT_LONGEST = 256
"""Rows up to this length are one sequence without padding on a CPU, whose attention keeps all probabilities
(`models/flat_rows.py`)."""

WRITTEN_ROWS, WRITTEN_TOKENS = 128, 16_384
"""Most answers that are written together, and their tokens (`rollouts.py`; a test compares)."""


@dataclass(frozen=True)
class RowLength:
    """A row, in tokens."""

    tokens: int
    learned: int


@dataclass(frozen=True)
class Outlook:
    """The rows of a training."""

    rows: int
    """How many there are."""
    lengths: tuple[RowLength, ...]
    """Of those that were looked at, each cut off at `max_length`."""

    @property
    def tokens(self) -> int:
        """Of all rows, if those that were not looked at are like the others."""
        if not self.lengths:
            return 0
        return round(sum(row.tokens for row in self.lengths) * self.rows / len(self.lengths))

    @property
    def longest(self) -> RowLength:
        return max(self.lengths, key=lambda row: row.tokens)

    def without(self, heldout: int) -> Outlook:
        """Without so many rows."""
        return replace(self, rows=max(1, self.rows - heldout))

    def with_answers(self, tokens: int, max_length: int) -> Outlook:
        """The same rows with answers of so many tokens."""
        longer = (
            RowLength(min(max_length, row.tokens + tokens), max(1, min(max_length - row.tokens, tokens)))
            for row in self.lengths
        )
        return replace(self, lengths=tuple(longer))


@dataclass(frozen=True)
class Batch:
    """The largest micro-batch, in tokens."""

    tokens: int
    """That layers compute, padding included."""
    learned: int
    """Whose logits are computed."""
    rows: int
    longest: int
    """Of its rows."""

    @property
    def pairs(self) -> int:
        """Pairs of tokens in its rows, of which attention may keep the probabilities."""
        return self.rows * self.longest**2


@dataclass(frozen=True)
class Steps:
    """What the steps of a method are made of, and where they are computed."""

    of: Literal["rows", "pairs", "answers"] = "rows"
    """`answers`: the student's own, which it writes before it learns from them."""
    outlook: Outlook | None = None
    """Of the rows; of both sides of pairs; of prompts, where answers are learned."""
    answer: int = 0
    """Most tokens of such an answer."""
    answers_each: int = 1
    """Of a prompt."""
    rounds: int = 1
    """Optimiser steps from one writing of answers to the next."""
    loss: Literal["slices", "distribution", "tiles", "none"] = "slices"
    """How logits are held: a slice at a time; the same with a second distribution; TRL's tiles; there are none."""
    on: Literal["cpu", "gpu"] = "gpu"

    def batch(self, training: TrainerConfig) -> Batch:
        """The largest micro-batch."""
        if self.of == "pairs":
            return pair_batch(training, self.outlook)
        if self.of == "answers":
            return answer_batch(training, self.outlook, self.answer)
        return row_batch(training, self.outlook)

    def written(self, training: TrainerConfig) -> tuple[int, int]:
        """(answers that are written together, tokens of each with its prompt); (0, 0) if none are."""
        if self.of != "answers":
            return 0, 0
        longest = self.batch(training).longest
        answers = training.per_device_train_batch_size * training.gradient_accumulation_steps * self.rounds
        return min(answers, WRITTEN_ROWS, max(1, WRITTEN_TOKENS // longest)), longest


def row_batch(training: TrainerConfig, outlook: Outlook | None) -> Batch:
    """Of rows; without an outlook each is as long as it may be."""
    size, limit = training.per_device_train_batch_size, training.max_length
    budget = getattr(training, "max_tokens_per_batch", None)
    if outlook is None or not outlook.lengths:
        tokens = int(budget or size * limit)
        return Batch(tokens, tokens, -(-tokens // limit), limit)
    longest = outlook.longest
    share = sum(row.learned for row in outlook.lengths) / max(1, sum(row.tokens for row in outlook.lengths))
    if getattr(training, "packing", False):
        # Best fit fills packs nearly to the end.
        tokens = min(size * limit, outlook.tokens)
        return Batch(tokens, math.ceil(tokens * share), -(-tokens // limit), min(limit, tokens))
    if budget is not None:
        size = max(1, budget // longest.tokens)
    top = _longest(outlook, size)
    return Batch(len(top) * longest.tokens, sum(row.learned for row in top), len(top), longest.tokens)


def pair_batch(training: TrainerConfig, outlook: Outlook | None) -> Batch:
    """Of pairs, each of which is two rows, padded to the longest; `outlook` is of these rows."""
    size, limit = 2 * training.per_device_train_batch_size, training.max_length
    if outlook is None or not outlook.lengths:
        return Batch(size * limit, size * limit, size, limit)
    top = _longest(outlook, size)
    widest = max(row.learned for row in top)
    return Batch(len(top) * top[0].tokens, len(top) * widest, len(top), top[0].tokens)


def answer_batch(training: TrainerConfig, outlook: Outlook | None, answer: int) -> Batch:
    """Of answers of up to so many tokens to prompts, of which `outlook` is."""
    size, limit = training.per_device_train_batch_size, training.max_length
    longest = limit if outlook is None or not outlook.lengths else min(limit, outlook.longest.tokens + answer)
    return Batch(size * longest, size * min(answer, longest), size, longest)


def _longest(outlook: Outlook, count: int) -> Sequence[RowLength]:
    found = sorted(outlook.lengths, key=lambda row: -row.tokens)[: min(count, outlook.rows)]
    # Those that were not looked at may be as long.
    return [*found, *[found[0]] * (min(count, outlook.rows) - len(found))]
