"""Rows, batches and files: which rows are scored together, and into which shard of the store they go.

Batches are grouped into shards of a fixed number of tokens, in an order that depends only on the whole list of rows. So
killed scoring resumes with the first missing shard, and ends with the same store as scoring that was not interrupted.
Several processes share the shards (`sharing.py`); the store is the one that a single process makes.

On a GPU the next batches are started while another thread turns the signals of the last one into the bits of the store.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

import torch

from easydistill.data.batches import batches_by_length
from easydistill.engine.interrupt import StopSignal
from easydistill.models.loading import device
from easydistill.signals.codec import Codec
from easydistill.signals.config import SignalsConfig
from easydistill.signals.score import Found, RowT, RowToScore, RunsAhead, Scorer, batch_tokens
from easydistill.signals.shared import SharedStore
from easydistill.signals.sharing import LOOK_SECONDS, SharedWork
from easydistill.signals.store import (
    EncodedSample,
    remove_shards_from,
    shard_hashes,
    shard_ids,
    shard_path,
    token_hash,
    write_encoded,
)
from easydistill.signals.unusable import check_usable, without_unusable


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
    shared: SharedStore | None = None
    """Where other runs find them."""

    @classmethod
    def of(cls, rows: Sequence[RowT], config: SignalsConfig, directory: Path) -> ShardPlan[RowT]:
        shards = plan_shards([row.length for row in rows], batch_tokens(config), config.shard_tokens)
        missing = [shard for shard in shards if not _is_complete(shard, rows, directory)]
        return cls(rows, directory, shards, missing)

    def with_shared(self, shared: SharedStore | None) -> ShardPlan[RowT]:
        """The plan once the missing shards that other runs have scored are in their place."""
        if shared is None:
            return self
        missing = []
        for shard in self.missing:
            fetched = shared.fetch(self._rows_of(shard), shard_path(self.directory, shard.number))
            if not fetched or not _is_complete(shard, self.rows, self.directory):
                missing.append(shard)
        return replace(self, missing=missing, shared=shared)

    def _rows_of(self, shard: Shard) -> list[RowT]:
        return [self.rows[index] for batch in shard.batches for index in batch]

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
                writer = _ShardWriter(self.directory, codec, self._keep)
                _score_shards(self.rows, itertools.chain([first], todo), scorer, writer, others.advance, stop)
        if share is not None and not stop.requested:
            share.report(shards=len(share.taken), peak_memory_bytes=_peak_memory())
            if share.rank == 0:
                share.wait(others.look, stop)

    def _keep(self, shard: Shard) -> None:
        if self.shared is not None:
            self.shared.keep(self._rows_of(shard), shard_path(self.directory, shard.number))


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
    path, wanted = shard_path(directory, shard.number), [rows[index] for batch in shard.batches for index in batch]
    if not path.is_file() or shard_ids(path) != [row.id for row in wanted]:
        return False
    if not any(row.images for row in wanted):
        return True
    # Files of images may have changed under the same names.
    return shard_hashes(path) == [token_hash(row.ids, row.learned, row.images) for row in wanted]


class _ShardWriter:
    """Encodes the batches of shards, which come in order, and writes each shard after its last batch."""

    def __init__(self, directory: Path, codec: Codec, written: Callable[[Shard], None]) -> None:
        self._directory, self._codec, self._written = directory, codec, written
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
            self._written(shard)


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
