"""Micro-batches by tokens: every row once, within the budget, the same steps whether or not a run is interrupted."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from pydantic import ValidationError
from tests.integration.test_supervised import rows, weights
from tests.support.killed import killed_at
from torch.utils.data import DataLoader

from easydistill.config.models import ModelsConfig
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.methods.sft import trainer as supervised
from easydistill.methods.sft.batching import IGNORE, TokenRow
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.sft.feeding import Feed
from easydistill.methods.sft.items import Items
from easydistill.methods.sft.token_batches import TokenBatchSampler, token_batch_sampler
from easydistill.models.student import build_student


def lengths(count: int, seed: int = 0) -> list[int]:
    """Log-normal, as real rows are."""
    generator = random.Random(seed)
    return [max(4, min(256, int(generator.lognormvariate(3.5, 1)))) for _ in range(count)]


def padded(batch: tuple[int, ...], sizes: list[int]) -> int:
    return len(batch) * max(sizes[index] for index in batch)


@pytest.mark.parametrize("window", [0, 50, 400])
def test_every_epoch_has_each_row_once_in_equally_many_batches_within_the_budget(window: int) -> None:
    sizes = lengths(311)
    sampler = TokenBatchSampler(sizes, 512, window, seed=3, epochs=6)
    epochs = []
    for epoch in (0, 1, 2, 3, 4, 5, 0):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    for batches in epochs:
        assert sorted(index for batch in batches for index in batch) == list(range(311))
        assert len(batches) == len(sampler)
        assert all(batches)
        assert max(padded(batch, sizes) for batch in batches) <= 512
    assert epochs[0] == epochs[6]
    assert epochs[0] != epochs[1]


def test_grouping_fills_the_budget() -> None:
    """Fewer batches than without grouping, and little of them is padding."""
    sizes = lengths(2000)
    grouped = token_batch_sampler(sizes, 1024, TrainingConfig(max_length=256), grouped=True, ranks=1)
    shuffled = token_batch_sampler(sizes, 1024, TrainingConfig(max_length=256), grouped=False, ranks=1)
    assert len(grouped) < 0.7 * len(shuffled)
    assert sum(sizes) / sum(padded(batch, sizes) for batch in grouped) > 0.9


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_batches_evenly(ranks: int) -> None:
    sampler = TokenBatchSampler(lengths(200), 512, 100, seed=0, epochs=3, ranks=ranks)
    assert len(sampler) % ranks == 0


@pytest.mark.parametrize(("count", "ranks"), [(10, 4), (3, 4), (5, 2), (12, 4)])
def test_each_row_is_learned_once_where_all_are_as_large_as_the_budget(count: int, ranks: int) -> None:
    """With the data loaders that accelerate makes of the trainer's."""
    made = [TokenRow(str(n), [10 + n] * 48, [True] * 48) for n in range(count)]
    config = TrainingConfig(max_length=48, max_tokens_per_batch=48, num_train_epochs=2)
    for epoch in range(2):
        learned: list[int] = []
        drawn = []
        for rank in range(ranks):
            feed = Feed(Items(made), config, 0, ranks=ranks)
            feed.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            loader: Any = DataLoader(feed.dataset, batch_size=1, sampler=feed.sampler, collate_fn=feed.collate)
            parts: Any = prepare_data_loader(loader, num_processes=ranks, process_index=rank, put_on_device=False)
            labels = [batch["labels"] for batch in parts]
            drawn.append(len(labels))
            for label_BT in labels:
                learned += label_BT[label_BT != IGNORE].unique().tolist()
        assert sorted(learned) == [10 + n for n in range(count)]
        assert drawn == [math.ceil(count / ranks)] * ranks


@pytest.mark.parametrize("budget", [48, None])
def test_the_first_micro_batch_is_one_with_rows(budget: int | None) -> None:
    """Fewer rows than ranks: with most seeds, or in rank order, an empty one comes first."""
    made = [TokenRow(str(n), [10 + n] * 48, [True] * 48) for n in range(3)]
    for seed in range(8):
        config = TrainingConfig(max_length=48, max_tokens_per_batch=budget, seed=seed)
        assert Feed(Items(made), config, 0, ranks=16).first()["input_ids"].shape == (1, 48)


def test_epochs_are_counted_as_far_as_max_steps_reaches() -> None:
    """Any epoch that begins has been counted, so none needs more batches than the sampler says."""
    config = TrainingConfig(max_length=256, max_steps=60, gradient_accumulation_steps=2)
    sampler = token_batch_sampler(lengths(97), 256, config, grouped=True, ranks=1)
    for epoch in range(60 * 2 // len(sampler) + 1):
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"max_tokens_per_batch": 100, "max_length": 128}, "less than one row"),
        ({"max_tokens_per_batch": 4096, "per_device_train_batch_size": 4}, "both say how large"),
        ({"max_tokens_per_batch": 0}, "greater than or equal to 1"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        TrainingConfig(**values)


def run(tiny_model: Path, where: Path, made: list[TokenRow], **values: Any) -> tuple[dict[str, torch.Tensor], Any]:
    base: dict[str, Any] = {
        "num_train_epochs": 3,
        "max_tokens_per_batch": 96,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "bf16": False,
        "max_length": 48,
        "logging_steps": 1,
        "save_steps": 2,
    }
    student = build_student(ModelsConfig(student=str(tiny_model)), torch.float32)
    config = TrainingConfig(**(base | values))
    outcome = supervised.train(student, made, config, where, Reporter(None, quiet=True), StopSignal())
    return weights(student), outcome


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("die_at", [1, 5, 9])
def test_a_killed_training_ends_in_the_same_weights_bit_for_bit(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, die_at: int, packing: bool
) -> None:
    made = rows(40, longest=40)
    whole, outcome = run(tiny_model, tmp_path / "whole", made, packing=packing)
    assert outcome.steps > 9
    with killed_at(monkeypatch, die_at):
        run(tiny_model, tmp_path / "killed", made, packing=packing)
    resumed, again = run(tiny_model, tmp_path / "killed", made, packing=packing)
    assert again.steps == outcome.steps
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_one_step_of_all_rows_is_the_same_however_they_are_batched(tiny_model: Path, tmp_path: Path) -> None:
    """The loss is divided by the learned tokens of the step, so batches of unequal numbers of rows weigh right."""
    made = rows(24, longest=40)
    kind: dict[str, Any] = {"optim": "sgd", "max_grad_norm": 0, "warmup_ratio": 0.0, "num_train_epochs": 1}
    kind |= {"gradient_accumulation_steps": 64, "learning_rate": 0.1}
    found = [
        run(tiny_model, tmp_path / "rows", made, max_tokens_per_batch=None, per_device_train_batch_size=3, **kind),
        run(tiny_model, tmp_path / "tokens", made, **kind),
        run(tiny_model, tmp_path / "packs", made, packing=True, **kind),
    ]
    assert [outcome.steps for _, outcome in found] == [1, 1, 1]
    start = weights(build_student(ModelsConfig(student=str(tiny_model)), torch.float32))
    assert max(float((value - start[name]).abs().max()) for name, value in found[0][0].items()) > 1e-4
    for other, _ in found[1:]:
        for name, value in found[0][0].items():
            torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-6)
