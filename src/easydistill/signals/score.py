"""Teacher forcing: one forward pass over exactly the tokens that the student will train on, stored as signals.

Each row's draws depend on its own id. Which rows are scored together is decided in `shards.py`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from easydistill.data.tokens import Mask, TokenIds
from easydistill.models.flat_rows import flat_rows
from easydistill.models.head import Head, body_of
from easydistill.models.loading import choose_dtype, device, load_model
from easydistill.signals.config import SignalsConfig
from easydistill.signals.extract import SignalShape, TeacherRows, start_extracting
from easydistill.signals.signal import TeacherSignal
from easydistill.signals.store import ScoredSample

BATCH_TOKENS = 4096
GPU_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class RowToScore:
    """A tokenised row; `learned[t]` says whether token t is learned (never the first)."""

    id: str
    ids: TokenIds
    learned: Mask

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
        scored.append(ScoredSample(row.id, row.ids, row.learned, signal.rows(at, at + count), np.ones(count, bool)))
        at += count
    return scored


class ModelScorer:
    """Scores rows with models loaded into this process.

    Args:
        references: the teachers, all with the student's vocabulary.
        weights: their shares in the mixture.
        vocabulary: token ids below this are real for teacher and student.
        temperature: of the kept distribution.
        models: the teachers themselves, on this machine's device, if they are loaded.
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
    ) -> None:
        self._device = device()
        dtype = choose_dtype(config.dtype, self._device)
        self._models = list(models or ()) or [
            load_model(reference, dtype, trust_remote_code=trust_remote_code).to(self._device)
            for reference in references
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
            hidden_ND = self._hidden(rows, batch)
            signal_of_batch = start_extracting(
                TeacherRows(hidden_ND, [Head.of(model) for model in self._models], self._log_weights),
                batch.target_N,
                batch.uniform_N,
                self._shape,
                self._vocabulary,
                self._temperature,
            )
        return lambda: _samples(rows, signal_of_batch())

    def _hidden(self, rows: Sequence[RowToScore], batch: Batch) -> list[Tensor]:
        """Each teacher's hidden states [N, D] from which the learned tokens are predicted."""
        flat = flat_rows([row.ids for row in rows], self._device)
        found = []
        for model in self._models:
            hidden_ND = flat.hidden(model) if flat is not None else None
            if flat is not None and hidden_ND is not None:
                width = batch.ids_BT.shape[1]
                place_N = flat.layout.places(batch.place_N // width, batch.place_N % width)
                found.append(hidden_ND.index_select(0, place_N))
            else:
                hidden_BTD = body_of(model)(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
                found.append(hidden_BTD.flatten(0, 1).index_select(0, batch.place_N))
        return found

    def close(self) -> None:
        self._models = []


def batch_tokens(config: SignalsConfig) -> int:
    """Most tokens of one forward pass on this machine."""
    if config.max_batch_tokens is not None:
        return config.max_batch_tokens
    return GPU_BATCH_TOKENS if device().type == "cuda" else BATCH_TOKENS
