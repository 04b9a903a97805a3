"""Teacher forcing: one forward pass over exactly the tokens that the student will train on, stored as signals.

Rows are batched by length in an order that depends only on the whole list, each row's draws depend on its own id, and
batches are grouped into shards of a fixed number of tokens. So killed scoring resumes with the first missing shard,
and ends with the same store as scoring that was not interrupted. Several processes share the shards (`sharing.py`); the
store is the one that a single process makes.

On a GPU the next batches are started while another thread turns the signals of the last one into the bits of the store.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from easydistill.data.batches import batches_by_length
from easydistill.data.tokens import Mask, TokenIds
from easydistill.engine.interrupt import StopSignal
from easydistill.models.head import Head, body_of
from easydistill.models.loading import choose_dtype, device, load_model
from easydistill.signals.codec import Codec
from easydistill.signals.config import SignalsConfig
from easydistill.signals.extract import SignalShape, TeacherRows, start_extracting
from easydistill.signals.sharing import LOOK_SECONDS, SharedWork
from easydistill.signals.signal import TeacherSignal
from easydistill.signals.store import (
    EncodedSample,
    ScoredSample,
    remove_shards_from,
    shard_ids,
    shard_path,
    write_encoded,
)
from easydistill.signals.unusable import check_usable, without_unusable

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
            hidden_ND = [
                body_of(model)(input_ids=batch.ids_BT, use_cache=False)
                .last_hidden_state.flatten(0, 1)
                .index_select(0, batch.place_N)
                for model in self._models
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


@dataclass(frozen=True)
class Shard:
    """The batches of one file."""

    number: int
    batches: list[list[int]]

    @property
    def rows(self) -> int:
        return sum(map(len, self.batches))


def plan_shards(lengths: Sequence[int], most_tokens: int, shard_tokens: int) -> list[Shard]:
    """Group rows by length into batches of at most `most_tokens` (padding included), and batches into shards."""
    shards: list[Shard] = []
    filled = shard_tokens
    for batch in batches_by_length(lengths, None, most_tokens, 0):
        tokens = sum(lengths[index] for index in batch)
        if filled + tokens > shard_tokens:
            shards.append(Shard(len(shards), []))
            filled = 0
        shards[-1].batches.append(batch)
        filled += tokens
    return shards


@dataclass(frozen=True)
class ShardPlan(Generic[RowT]):
    """The shards of a store, and which of them are missing."""

    rows: Sequence[RowT]
    directory: Path
    shards: list[Shard]
    missing: list[Shard]

    @classmethod
    def of(cls, rows: Sequence[RowT], config: SignalsConfig, directory: Path) -> ShardPlan[RowT]:
        shards = plan_shards([row.length for row in rows], batch_tokens(config), config.shard_tokens)
        missing = [shard for shard in shards if not _is_complete(shard, rows, directory)]
        return cls(rows, directory, shards, missing)

    @property
    def finished_rows(self) -> int:
        return len(self.rows) - sum(shard.rows for shard in self.missing)

    def score(
        self,
        codec: Codec,
        make_scorer: Callable[[], Scorer[RowT]],
        advance: Callable[[int, int], Any],
        stop: StopSignal,
        share: SharedWork | None = None,
    ) -> None:
        """Score the rows of missing shards.

        `advance(rows, tokens)` is called as rows are finished. Returns early, between batches, once `stop` is
        requested.

        Args:
            share: of several processes, this one's. The first counts the others' rows too, and returns last.
        """
        if share is None or share.rank == 0:
            remove_shards_from(self.directory, len(self.shards))
        others = _Others(self, share, advance)
        open_ones = self.missing if share is None else (shard for shard in self.missing if share.take(shard.number))
        todo = iter(open_ones)
        # No teacher is loaded if there is nothing to do.
        if (first := next(todo, None)) is not None:
            with contextlib.closing(make_scorer()) as scorer:
                writer = _ShardWriter(self.directory, codec)
                _score_shards(self.rows, itertools.chain([first], todo), scorer, writer, others.advance, stop)
        if share is not None and not stop.requested:
            share.report(shards=len(share.taken), peak_memory_bytes=_peak_memory())
            if share.rank == 0:
                share.wait(others.look, stop)


def _peak_memory() -> int:
    """Most bytes that this process had on its GPU; without one, in memory."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class _Others(Generic[RowT]):
    """Counts, in the first of several processes, the rows that the others finish."""

    def __init__(self, plan: ShardPlan[RowT], share: SharedWork | None, advance: Callable[[int, int], Any]) -> None:
        self._plan, self._share, self._advance = plan, share, advance
        self._waiting = {shard.number: shard for shard in plan.missing}
        self._looked = time.monotonic()

    def advance(self, rows: int, tokens: int) -> None:
        """Count rows of this process, and from time to time the others'."""
        self._advance(rows, tokens)
        if self._share is not None and self._share.rank == 0 and time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            self.look()

    def look(self) -> None:
        assert self._share is not None
        rows = self._plan.rows
        for number in [number for number in self._waiting if number not in self._share.taken]:
            shard = self._waiting[number]
            if _is_complete(shard, rows, self._plan.directory):
                del self._waiting[number]
                self._advance(shard.rows, sum(rows[index].length for batch in shard.batches for index in batch))


def score_rows(
    rows: Sequence[RowT],
    config: SignalsConfig,
    codec: Codec,
    directory: Path,
    make_scorer: Callable[[], Scorer[RowT]],
    advance: Callable[[int, int], Any],
    stop: StopSignal,
) -> int:
    """Score every row into shards in `directory`, skipping those that exist; returns the number of shards.

    See `ShardPlan.score`.
    """
    plan = ShardPlan.of(rows, config, directory)
    plan.score(codec, make_scorer, advance, stop)
    return len(plan.shards)


def _is_complete(shard: Shard, rows: Sequence[RowToScore], directory: Path) -> bool:
    """Whether a shard exists and holds the rows that it should: plans with other sizes may have been made before."""
    path = shard_path(directory, shard.number)
    return path.is_file() and shard_ids(path) == [rows[index].id for batch in shard.batches for index in batch]


class _ShardWriter:
    """Encodes the batches of shards, which come in order, and writes each shard after its last batch."""

    def __init__(self, directory: Path, codec: Codec) -> None:
        self._directory, self._codec = directory, codec
        self._shard = -1
        self._samples: list[EncodedSample] = []

    def add(self, shard: Shard, found: Found) -> None:
        samples = found()
        kept = [without_unusable(sample) for sample in samples]
        check_usable(samples, kept)
        if shard.number != self._shard:
            self._shard, self._samples = shard.number, []
        self._samples += [EncodedSample.of(sample, self._codec) for sample in kept]
        if len(self._samples) == shard.rows:
            write_encoded(shard_path(self._directory, shard.number), self._samples)


def _score_shards(
    rows: Sequence[RowT],
    shards: Iterable[Shard],
    scorer: Scorer[RowT],
    writer: _ShardWriter,
    advance: Callable[[int, int], Any],
    stop: StopSignal,
) -> None:
    ahead = scorer.ahead if isinstance(scorer, RunsAhead) else 0
    unfinished: deque[tuple[Future[None], list[int]]] = deque()

    def finish_some(left: int) -> None:
        while len(unfinished) > left:
            future, batch = unfinished.popleft()
            future.result()
            advance(len(batch), sum(rows[index].length for index in batch))

    with ThreadPoolExecutor(1, thread_name_prefix="signals") as thread:
        for shard, batch in _until_stopped(shards, stop):
            found = _started(scorer, [rows[index] for index in batch])
            unfinished.append((thread.submit(writer.add, shard, found), batch))
            finish_some(ahead)
        finish_some(0)


def _started(scorer: Scorer[RowT], rows: Sequence[RowT]) -> Found:
    if isinstance(scorer, RunsAhead):
        return scorer.start(rows)
    samples = scorer.score(rows)
    return lambda: samples


def _until_stopped(shards: Iterable[Shard], stop: StopSignal) -> Iterator[tuple[Shard, list[int]]]:
    for shard in shards:
        for batch in shard.batches:
            if stop.requested:
                return
            yield shard, batch
