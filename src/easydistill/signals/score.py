"""Teacher forcing: one forward pass over exactly the tokens that the student will train on, stored as signals.

Rows are batched by length in an order that depends only on the whole list, each row's draws depend on its own id, and
batches are grouped into shards of a fixed number of tokens. So killed scoring resumes with the first missing shard,
and ends with the same store as scoring that was not interrupted.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from easydistill.data.batches import batches_by_length, padded
from easydistill.data.tokens import Mask, TokenIds
from easydistill.engine.interrupt import StopSignal
from easydistill.models.head import Head, body_of
from easydistill.models.loading import choose_dtype, device, load_model
from easydistill.signals.codec import Codec
from easydistill.signals.config import SignalsConfig
from easydistill.signals.extract import SignalShape, TeacherRows, extract
from easydistill.signals.signal import TeacherSignal
from easydistill.signals.store import ScoredSample, shard_path, write_shard
from easydistill.signals.unusable import check_usable, without_unusable


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


def uniform_numbers(seed: int, row_id: str, count: int) -> list[float]:
    """A number in [0, 1) for each token's draws, which depends only on the seed and the row's id."""
    digest = hashlib.sha256(f"{seed}:{row_id}".encode("utf-8", "surrogatepass")).digest()
    stream = random.Random(int.from_bytes(digest[:8], "big"))
    return [stream.random() for _ in range(count)]


class ModelScorer:
    """Scores rows with models loaded into this process.

    Args:
        references: the teachers, all with the student's vocabulary.
        weights: their shares in the mixture.
        vocabulary: token ids below this are real for teacher and student.
        temperature: of the kept distribution.
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
    ) -> None:
        self._device = device()
        dtype = choose_dtype(config.dtype, self._device)
        self._models = [
            load_model(reference, dtype, trust_remote_code=trust_remote_code).to(self._device)
            for reference in references
        ]
        total = sum(weights)
        self._log_weights = [float(np.log(weight / total)) for weight in weights]
        self._seed = config.seed
        self._shape = SignalShape.of(config, vocabulary)
        self._vocabulary = vocabulary
        self._temperature = temperature

    def score(self, rows: Sequence[RowToScore]) -> list[ScoredSample]:
        signal = self._signal(rows)
        scored: list[ScoredSample] = []
        at = 0
        for row in rows:
            count = sum(row.learned)
            present = np.ones(count, bool)
            scored.append(ScoredSample(row.id, row.ids, row.learned, signal.rows(at, at + count), present))
            at += count
        return scored

    def _signal(self, rows: Sequence[RowToScore]) -> TeacherSignal:
        ids_BT = torch.tensor(padded([row.ids for row in rows], 0), device=self._device)
        keep_BT = torch.tensor(padded([row.learned for row in rows], False), device=self._device)[:, 1:]
        uniform = [u for row in rows for u in uniform_numbers(self._seed, row.id, sum(row.learned))]
        with torch.inference_mode():
            hidden_ND = [
                body_of(model)(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1][keep_BT]
                for model in self._models
            ]
            return extract(
                TeacherRows(hidden_ND, [Head.of(model) for model in self._models], self._log_weights),
                ids_BT[:, 1:][keep_BT],
                torch.tensor(uniform, dtype=torch.float64, device=self._device),
                self._shape,
                self._vocabulary,
                self._temperature,
            )

    def close(self) -> None:
        self._models = []


@dataclass(frozen=True)
class Shard:
    """The batches of one file."""

    number: int
    batches: list[list[int]]

    @property
    def rows(self) -> int:
        return sum(map(len, self.batches))


def plan_shards(lengths: Sequence[int], batch_tokens: int, shard_tokens: int) -> list[Shard]:
    """Group rows by length into batches of at most `batch_tokens` (padding included), and batches into shards."""
    shards: list[Shard] = []
    filled = shard_tokens
    for batch in batches_by_length(lengths, None, batch_tokens, 0):
        tokens = sum(lengths[index] for index in batch)
        if filled + tokens > shard_tokens:
            shards.append(Shard(len(shards), []))
            filled = 0
        shards[-1].batches.append(batch)
        filled += tokens
    return shards


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

    `advance(rows, tokens)` is called as rows are finished. Returns early, between batches, once `stop` is requested.
    """
    shards = plan_shards([row.length for row in rows], config.max_batch_tokens, config.shard_tokens)
    scorer: Scorer[RowT] | None = None
    try:
        for shard in shards:
            path = shard_path(directory, shard.number)
            if path.is_file():
                continue
            scorer = scorer or make_scorer()
            scored: list[ScoredSample] = []
            for batch in _until_stopped(shard.batches, stop):
                found = scorer.score([rows[index] for index in batch])
                kept = [without_unusable(sample) for sample in found]
                check_usable(found, kept)
                scored += kept
                advance(len(batch), sum(rows[index].length for index in batch))
            if len(scored) < shard.rows:
                break
            write_shard(path, scored, codec)
    finally:
        if scorer is not None:
            scorer.close()
    return len(shards)


def _until_stopped(batches: Sequence[list[int]], stop: StopSignal) -> Iterator[list[int]]:
    for batch in batches:
        if stop.requested:
            return
        yield batch
