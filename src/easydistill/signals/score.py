"""Teacher forcing: one forward pass over exactly the tokens that the student will train on, stored as signals.

Each row's draws depend on its own id. Which rows are scored together is decided in `shards.py`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from easydistill.data.tokens import Mask, TokenIds
from easydistill.errors import DataError
from easydistill.models.head import Head, body_of
from easydistill.models.loading import choose_dtype, device, is_multimodal, load_model
from easydistill.signals.config import SignalsConfig
from easydistill.signals.extract import SignalShape, TeacherRows, start_extracting
from easydistill.signals.signal import TeacherSignal
from easydistill.signals.store import ScoredSample

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision
    from easydistill.models.multimodal.vision import ImageFiles

BATCH_TOKENS = 4096
GPU_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class RowToScore:
    """A tokenised row; `learned[t]` says whether token t is learned (never the first)."""

    id: str
    ids: TokenIds
    learned: Mask
    images: tuple[str, ...] = field(default=(), kw_only=True)
    """The digests of its images, in the order of their tokens."""

    @property
    def length(self) -> int:
        """Tokens of the teacher's forward pass; at least one."""
        return len(self.ids)

    @property
    def learned_tokens(self) -> int:
        return int(np.count_nonzero(self.learned))


RowT = TypeVar("RowT", bound=RowToScore)
ReadT = TypeVar("ReadT", bound=RowToScore, contravariant=True)


class Scorer(Protocol[ReadT]):
    """Computes the signals of a batch of rows."""

    def score(self, rows: Sequence[ReadT]) -> list[ScoredSample]: ...

    def close(self) -> None: ...


Found = Callable[[], list[ScoredSample]]
"""Waits for the signals of a batch; may be called in another thread."""


@runtime_checkable
class RunsAhead(Protocol):
    """A scorer that can start a batch before earlier ones are finished."""

    ahead: int
    """How many batches may be unfinished when the next is started."""

    def start(self, rows: Sequence[Any]) -> Found: ...


def uniform_numbers(seed: int, row_id: str, count: int) -> list[float]:
    """A number in [0, 1) for each token's draws, which depends only on the seed and the row's id."""
    digest = hashlib.sha256(f"{seed}:{row_id}".encode("utf-8", "surrogatepass")).digest()
    stream = random.Random(int.from_bytes(digest[:8], "big"))
    return [stream.random() for _ in range(count)]


@dataclass(frozen=True)
class Batch:
    """Rows on a device, padded on the right, where causal attention does not look."""

    ids_BT: Tensor
    place_N: Tensor
    """Where, in the flattened [B, T], each learned token is predicted."""
    target_N: Tensor
    uniform_N: Tensor

    @classmethod
    def of(cls, rows: Sequence[RowToScore], seed: int, on: torch.device) -> Batch:
        """One copy brings a batch to its device, and on a GPU the host does not wait for it."""
        width = max(row.length for row in rows)
        ids_BT = np.zeros((len(rows), width), np.int64)
        places, targets, uniform = [], [], []
        for at, row in enumerate(rows):
            ids_T, learned = np.asarray(row.ids, np.int64), np.flatnonzero(row.learned)
            ids_BT[at, : len(ids_T)] = ids_T
            places.append(at * width + learned - 1)
            targets.append(ids_T[learned])
            uniform.append(np.array(uniform_numbers(seed, row.id, len(learned)), np.float64))
        uniform_N = np.concatenate(uniform)
        words = torch.from_numpy(np.concatenate([ids_BT.ravel(), *places, *targets, uniform_N.view(np.int64)]))
        if on.type == "cuda":
            words = words.pin_memory()
        words = words.to(on, non_blocking=True)
        count = len(uniform_N)
        ids, place_N, target_N, uniform_bits_N = words.split([ids_BT.size, count, count, count])
        return cls(ids.view(ids_BT.shape), place_N, target_N, uniform_bits_N.view(torch.float64))


def _samples(rows: Sequence[RowToScore], signal: TeacherSignal) -> list[ScoredSample]:
    scored: list[ScoredSample] = []
    at = 0
    for row in rows:
        count = row.learned_tokens
        found, present = signal.rows(at, at + count), np.ones(count, bool)
        scored.append(ScoredSample(row.id, row.ids, row.learned, found, present, row.images))
        at += count
    return scored


def _vision(reference: str, model: Any, images: ImageFiles | None, trust_remote_code: bool) -> Vision | None:
    """What a teacher sees of images; None for a model of text."""
    if not is_multimodal(model.config):
        return None
    from easydistill.models.multimodal import Vision, load_processor

    processor = load_processor(reference, trust_remote_code=trust_remote_code)
    return Vision(processor, images or _no_images)


def _no_images(digest: str) -> Path:
    raise DataError(f"the image {digest} is not at hand")


def _seen(vision: Vision | None, rows: Sequence[RowToScore], ids_BT: Tensor) -> dict[str, Tensor]:
    """What a teacher is given beside the ids of rows."""
    if vision is None:
        assert not any(row.images for row in rows), "rows with images are refused for a teacher of text"
        return {}
    shown = vision.batch([(row.ids, row.images) for row in rows])
    return {**vision.type_ids(ids_BT), **{name: value.to(ids_BT.device) for name, value in shown.items()}}


class ModelScorer:
    """Scores rows with models loaded into this process.

    Args:
        references: the teachers, all with the student's vocabulary.
        weights: their shares in the mixture.
        vocabulary: token ids below this are real for teacher and student.
        temperature: of the kept distribution.
        models: the teachers themselves, on this machine's device, if they are loaded.
        images: gives the file of an image by its digest, for rows with images.
    """

    def __init__(
        self,
        references: Sequence[str],
        weights: Sequence[float],
        config: SignalsConfig,
        vocabulary: int,
        temperature: float,
        *,
        trust_remote_code: bool = False,
        models: Sequence[Any] | None = None,
        images: ImageFiles | None = None,
    ) -> None:
        self._device = device()
        dtype = choose_dtype(config.dtype, self._device)
        self._models = list(models or ()) or [
            load_model(reference, dtype, trust_remote_code=trust_remote_code).to(self._device)
            for reference in references
        ]
        self._visions = [
            _vision(reference, model, images, trust_remote_code)
            for reference, model in zip(references, self._models, strict=True)
        ]
        total = sum(weights)
        self._log_weights = [float(np.log(weight / total)) for weight in weights]
        self._seed = config.seed
        self._shape = SignalShape.of(config, vocabulary)
        self._vocabulary = vocabulary
        self._temperature = temperature

    @property
    def ahead(self) -> int:
        return 2 if self._device.type == "cuda" else 0

    def score(self, rows: Sequence[RowToScore]) -> list[ScoredSample]:
        return self.start(rows)()

    def start(self, rows: Sequence[RowToScore]) -> Found:
        batch = Batch.of(rows, self._seed, self._device)
        with torch.inference_mode():
            hidden_ND = [
                body_of(model)(input_ids=batch.ids_BT, use_cache=False, **_seen(vision, rows, batch.ids_BT))
                .last_hidden_state.flatten(0, 1)
                .index_select(0, batch.place_N)
                for model, vision in zip(self._models, self._visions, strict=True)
            ]
            signal_of_batch = start_extracting(
                TeacherRows(hidden_ND, [Head.of(model) for model in self._models], self._log_weights),
                batch.target_N,
                batch.uniform_N,
                self._shape,
                self._vocabulary,
                self._temperature,
            )
        return lambda: _samples(rows, signal_of_batch())

    def close(self) -> None:
        self._models = []


def batch_tokens(config: SignalsConfig) -> int:
    """Most tokens of one forward pass on this machine."""
    if config.max_batch_tokens is not None:
        return config.max_batch_tokens
    return GPU_BATCH_TOKENS if device().type == "cuda" else BATCH_TOKENS
