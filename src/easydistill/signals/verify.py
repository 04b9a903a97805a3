"""`signals inspect` and `signals verify`: the facts of a store, and whether the teacher still agrees with it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from easydistill.signals.codec import WORD_FLOOR
from easydistill.signals.score import RowToScore, Scorer
from easydistill.signals.signal import TeacherSignal
from easydistill.signals.store import SignalStore
from easydistill.signals.unusable import without_unusable

BF16_TOLERANCE = 0.15
"""Nats by which a log-probability may differ between batchings of a bfloat16 model: logits near 20 are 1/16 apart."""
ENGINES_TOLERANCE = 1.0
"""The same between two implementations of a bfloat16 model, which round differently: 0.4 on 150 tokens of SmolLM2 (0.04
on average, as far as either is from float32)."""


def inspect(directory: Path) -> dict[str, Any]:
    """A store's facts: counts, size, what determines the signals.

    Raises:
        DataError: there is no complete store in `directory`.
    """
    store = SignalStore(directory)
    manifest = store.manifest
    return {
        "samples": manifest.samples,
        "tokens": manifest.tokens,
        "shards": manifest.shards,
        "bytes": manifest.bytes,
        "bytes_per_token": round(manifest.bytes_per_token, 3),
        **store.figures(),
        "about": manifest.about,
    }


@dataclass(frozen=True)
class Verification:
    """How a fresh scoring of some rows compares with the stored signals."""

    rows: int
    tokens: int
    worst: float
    """Largest difference of a target's log-probability, in nats."""
    mean: float
    head_overlap: float
    """Share of the stored heads' tokens that are in the new heads too; 1 if there are no heads."""
    wrong: list[str]
    """Ids of rows in which a target's log-probability differs by more than the tolerance."""

    @property
    def good(self) -> bool:
        return not self.wrong


def verify(
    store: SignalStore,
    scorer: Scorer[RowToScore],
    tokens: int,
    tolerance: float,
    seed: int,
    advance: Callable[[int], Any],
) -> Verification:
    """Score random rows again, at least `tokens` tokens, and compare.

    Hashes are checked on the way: a row whose tokens do not match its hash raises DataError.
    """
    order = sorted(store.ids)
    random.Random(seed).shuffle(order)
    differences: list[np.ndarray[Any, Any]] = []
    overlaps: list[float] = []
    wrong: list[str] = []
    seen = 0
    for sample_id in order:
        if seen >= tokens:
            break
        ids, learned = store.tokens(sample_id)
        images = store.images(sample_id)
        kept, present = store.read(sample_id, ids, learned, images)
        row = RowToScore(sample_id, ids, learned, images=images, read=store.read_tokens(sample_id))
        fresh = without_unusable(scorer.score([row])[0])
        if len(fresh.signal) != len(kept) or not np.array_equal(fresh.present, present):
            wrong.append(sample_id)
            continue
        # Stored values are clipped at a floor.
        difference = np.abs(np.maximum(fresh.signal.target_logprob_N, -WORD_FLOOR) - kept.target_logprob_N)
        differences.append(difference)
        overlaps.append(_overlap(kept, fresh.signal))
        if difference.max(initial=0.0) > tolerance:
            wrong.append(sample_id)
        seen += len(kept)
        advance(len(kept))
    every = np.concatenate(differences) if differences else np.zeros(1)
    return Verification(
        len(differences), seen, float(every.max()), float(every.mean()), float(np.mean(overlaps or [1.0])), wrong
    )


def _overlap(kept: TeacherSignal, fresh: TeacherSignal) -> float:
    used_NK = np.isfinite(kept.head_logprobs_NK)
    if not used_NK.any():
        return 1.0
    found_NK = (kept.head_ids_NK[:, :, None] == fresh.head_ids_NK[:, None, :]).any(-1)
    return float(found_NK[used_NK].mean())
