"""Scoring by shards: batches that run ahead, stops, failures, and what is kept when it goes on."""

from __future__ import annotations

import multiprocessing
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from easydistill.engine.interrupt import StopSignal
from easydistill.errors import DataError
from easydistill.signals.codec import Codec
from easydistill.signals.config import ThresholdSignals
from easydistill.signals.extract import SignalShape, signal_of_logits
from easydistill.signals.score import Batch, Found, RowToScore, uniform_numbers
from easydistill.signals.shards import ShardPlan, score_rows
from easydistill.signals.sharing import SharedWork
from easydistill.signals.store import ScoredSample, SignalStore, StoreManifest, shard_path

VOCABULARY = 80
SHAPE = SignalShape(6, draws=6, threshold=True)
CODEC = SHAPE.codec(VOCABULARY)


def made_rows(count: int) -> list[RowToScore]:
    generator = np.random.default_rng(0)
    rows = []
    for at in range(count):
        length = int(generator.integers(4, 30))
        learned = [False, *(generator.random(length - 1) < 0.6).tolist()]
        learned[-1] = True
        rows.append(RowToScore(f"row-{at}", generator.integers(0, VOCABULARY, length).tolist(), learned))
    return rows


ROWS = made_rows(40)


def settings(batch: int = 60, shard: int = 150) -> ThresholdSignals:
    return ThresholdSignals(n=6, max_batch_tokens=batch, shard_tokens=shard)


def signals_of(rows: Sequence[RowToScore]) -> list[ScoredSample]:
    """Signals that depend on each row alone."""
    scored = []
    for row in rows:
        count = sum(row.learned)
        generator = torch.Generator().manual_seed(int(row.id.removeprefix("row-")))
        logits = 3 * torch.randn(count, VOCABULARY, generator=generator)
        uniform = torch.tensor(uniform_numbers(0, row.id, count), dtype=torch.float64)
        made = signal_of_logits(logits, torch.zeros(count, dtype=torch.long), uniform, SHAPE)
        scored.append(ScoredSample(row.id, row.ids, row.learned, made, np.ones(count, bool)))
    return scored


@dataclass
class Plain:
    """A scorer that finishes a batch before it starts the next."""

    batches: int = 0
    closed: bool = False

    def score(self, rows: Sequence[RowToScore]) -> list[ScoredSample]:
        self.batches += 1
        return signals_of(rows)

    def close(self) -> None:
        self.closed = True


@dataclass
class Ahead(Plain):
    """A scorer whose signals are computed when they are waited for, as on a GPU."""

    ahead: int = 2
    unfinished: int = 0
    most_unfinished: int = 0
    threads: set[str] = field(default_factory=set)
    fails_at: int | None = None

    def start(self, rows: Sequence[RowToScore]) -> Found:
        self.batches += 1
        self.unfinished += 1
        self.most_unfinished = max(self.most_unfinished, self.unfinished)
        number = self.batches

        def finish() -> list[ScoredSample]:
            self.threads.add(threading.current_thread().name)
            if number == self.fails_at:
                raise DataError("the device fell off")
            found = signals_of(rows)
            self.unfinished -= 1
            return found

        return finish


def score(
    directory: Path,
    scorer: Plain,
    config: ThresholdSignals | None = None,
    stop: StopSignal | None = None,
    advance: Callable[[int, int], None] = lambda rows, tokens: None,
    codec: Codec = CODEC,
) -> int:
    directory.mkdir(exist_ok=True)
    return score_rows(ROWS, config or settings(), codec, directory, lambda: scorer, advance, stop or StopSignal())


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_running_ahead_writes_the_same_files(tmp_path: Path) -> None:
    counts: list[tuple[int, int]] = []
    shards = score(tmp_path / "plain", Plain())
    scorer = Ahead()
    assert score(tmp_path / "ahead", scorer, advance=lambda rows, tokens: counts.append((rows, tokens))) == shards > 3
    assert contents(tmp_path / "ahead") == contents(tmp_path / "plain")
    assert sum(rows for rows, _ in counts) == len(ROWS) and len(counts) == scorer.batches
    assert sum(tokens for _, tokens in counts) == sum(len(row.ids) for row in ROWS)
    assert scorer.closed
    # Never in the thread that starts batches, and never more than may be unfinished with one that has just started.
    assert len(scorer.threads) == 1 and threading.main_thread().name not in scorer.threads
    assert 1 < scorer.most_unfinished <= scorer.ahead + 1


@pytest.mark.parametrize("make", [Plain, Ahead])
def test_a_stopped_scoring_goes_on_to_the_same_files(tmp_path: Path, make: type[Plain]) -> None:
    score(tmp_path / "whole", Plain())
    stop = StopSignal()
    first = make()

    def after_some(rows: int, tokens: int) -> None:
        if first.batches >= 5:
            stop.request()

    score(tmp_path / "stopped", first, stop=stop, advance=after_some)
    kept = contents(tmp_path / "stopped")
    assert 0 < len(kept) < len(contents(tmp_path / "whole"))
    second = make()
    score(tmp_path / "stopped", second)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    whole = Plain()
    score(tmp_path / "again", whole)
    assert second.batches < whole.batches


def test_a_failure_while_batches_run_ahead_is_raised_and_leaves_complete_shards(tmp_path: Path) -> None:
    score(tmp_path / "whole", Plain())
    scorer = Ahead(fails_at=6)
    with pytest.raises(DataError, match="fell off"):
        score(tmp_path / "failed", scorer)
    assert scorer.closed
    whole = contents(tmp_path / "whole")
    assert all(whole[name] == found for name, found in contents(tmp_path / "failed").items())


@pytest.mark.parametrize("changed", [settings(batch=90), settings(shard=400), settings(shard=60)])
def test_other_sizes_do_not_lose_rows(tmp_path: Path, changed: ThresholdSignals) -> None:
    """The sizes are not part of a run's identity, so shards of other sizes may lie there."""
    score(tmp_path / "wanted", Plain(), changed)
    score(tmp_path / "store", Plain())
    shard_path(tmp_path / "store", 1).unlink()
    shards = score(tmp_path / "store", Plain(), changed)
    assert contents(tmp_path / "store") == contents(tmp_path / "wanted")
    StoreManifest.of(tmp_path / "store", CODEC, {"signals": {"kind": "test"}}, shards).write(tmp_path / "store")
    store = SignalStore(tmp_path / "store")
    assert sorted(store.ids) == sorted(row.id for row in ROWS)
    for row in ROWS:
        store.check(row.id, row.ids, row.learned)


def test_a_complete_store_needs_no_scorer(tmp_path: Path) -> None:
    score(tmp_path, Plain())
    unused = Plain()
    score(tmp_path, unused)
    assert not unused.batches and not unused.closed


def in_threads(directory: Path, scorers: Sequence[Plain]) -> list[list[int]]:
    """Score as so many processes would; what each has told (rows finished)."""
    told: list[list[int]] = [[] for _ in scorers]
    SharedWork.clear(directory / "work")
    store = directory / "store"
    store.mkdir(exist_ok=True)

    def one(rank: int) -> None:
        share = SharedWork(directory / "work", rank, len(scorers))
        plan = ShardPlan.of(ROWS, settings(), store)
        told[rank].append(plan.finished_rows)
        plan.score(CODEC, lambda: scorers[rank], lambda rows, tokens: told[rank].append(rows), StopSignal(), share)

    with ThreadPoolExecutor(len(scorers)) as threads:
        for done in [threads.submit(one, rank) for rank in range(len(scorers))]:
            done.result(timeout=30)
    return told


@pytest.mark.parametrize("make", [Plain, Ahead])
def test_several_share_the_shards(tmp_path: Path, make: type[Plain]) -> None:
    alone = Plain()
    score(tmp_path / "alone", alone)
    scorers = [make() for _ in range(4)]
    told = in_threads(tmp_path, scorers)
    assert contents(tmp_path / "store") == contents(tmp_path / "alone")
    assert sum(scorer.batches for scorer in scorers) == alone.batches
    # The first tells of all rows, each once.
    assert sum(told[0]) == len(ROWS)
    # What is there is nobody's.
    shard_path(tmp_path / "store", 2).unlink()
    again = [make() for _ in range(2)]
    in_threads(tmp_path, again)
    assert contents(tmp_path / "store") == contents(tmp_path / "alone")
    assert sum(bool(scorer.batches) for scorer in again) == 1


@dataclass
class Slow(Plain):
    """A scorer that takes a moment for a batch."""

    def score(self, rows: Sequence[RowToScore]) -> list[ScoredSample]:
        time.sleep(0.02)
        return super().score(rows)


def one_of_three(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    plan = ShardPlan.of(ROWS, settings(60, 60), folder / "store")
    plan.score(CODEC, Slow, lambda rows, tokens: None, StopSignal(), SharedWork(folder / "work", rank, 3))


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """Shards are complete or absent, finished ones are kept, and the end is that of an uninterrupted scoring."""
    score(tmp_path / "alone", Plain(), settings(60, 60))
    whole = contents(tmp_path / "alone")
    store = tmp_path / "store"
    store.mkdir()
    generator, forks = np.random.default_rng(1), multiprocessing.get_context("fork")
    kept: dict[str, int] = {}
    interrupted = 0
    while interrupted < 10:
        SharedWork.clear(tmp_path / "work")
        ranks = [forks.Process(target=one_of_three, args=(tmp_path, rank)) for rank in range(3)]
        for rank in ranks:
            rank.start()
        time.sleep(float(generator.uniform(0.0, 0.1)))
        for number in generator.permutation(3):
            ranks[number].kill()
            time.sleep(float(generator.uniform(0.0, 0.01)))
        for rank in ranks:
            rank.join()
        for path in store.glob(".*"):
            path.unlink()
        assert contents(store).items() <= whole.items()
        now = {path.name: path.stat().st_ino for path in store.iterdir()}
        assert kept.items() <= now.items()
        interrupted += len(kept) < len(now) < len(whole)
        if len(now) == len(whole):
            shutil.rmtree(store)
            store.mkdir()
        kept = now if len(now) < len(whole) else {}
    SharedWork.clear(tmp_path / "work")
    last = [forks.Process(target=one_of_three, args=(tmp_path, rank)) for rank in range(3)]
    for rank in last:
        rank.start()
    for rank in last:
        rank.join(60)
        assert rank.exitcode == 0
    assert contents(store) == whole
    assert kept.items() <= {path.name: path.stat().st_ino for path in store.iterdir()}.items()


def test_the_first_does_not_wait_for_others_when_it_is_to_stop(tmp_path: Path) -> None:
    SharedWork.clear(tmp_path / "work")
    (tmp_path / "store").mkdir()
    other = SharedWork(tmp_path / "work", 1, 2)
    assert other.take(0) and not other.take(0)
    stop = StopSignal()
    plan = ShardPlan.of(ROWS, settings(), tmp_path / "store")
    share = SharedWork(tmp_path / "work", 0, 2)
    timer = threading.Timer(0.5, stop.request)
    timer.start()
    plan.score(CODEC, Plain, lambda rows, tokens: None, stop, share)
    assert 0 not in share.taken and not shard_path(tmp_path / "store", 0).exists()
    assert len(contents(tmp_path / "store")) == len(plan.shards) - 1


@pytest.mark.parametrize("as_arrays", [False, True])
def test_a_batch_says_where_each_learned_token_is_predicted(as_arrays: bool) -> None:
    rows = ROWS[:7]
    given = rows
    if as_arrays:
        given = [RowToScore(row.id, np.asarray(row.ids, np.int32), np.asarray(row.learned, bool)) for row in rows]  # type: ignore[arg-type]
    batch = Batch.of(given, 3, torch.device("cpu"))
    width = max(len(row.ids) for row in rows)
    wanted = torch.zeros((len(rows), width), dtype=torch.int64)
    learned = torch.zeros((len(rows), width), dtype=torch.bool)
    for at, row in enumerate(rows):
        wanted[at, : len(row.ids)] = torch.tensor(row.ids)
        learned[at, : len(row.ids)] = torch.tensor(row.learned)
    assert torch.equal(batch.ids_BT, wanted)
    states = torch.arange(wanted.numel()).view(wanted.shape)
    assert torch.equal(states.flatten()[batch.place_N], states[:, :-1][learned[:, 1:]])
    assert torch.equal(batch.target_N, wanted[learned])
    uniform = [number for row in rows for number in uniform_numbers(3, row.id, sum(row.learned))]
    assert batch.uniform_N.tolist() == uniform
