"""Training: what must not change the result (batching, packing, accumulation, a kill), and what must."""

from __future__ import annotations

import inspect
import json
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import architectures
from tests.support.killed import killed_at

from easydistill.config.models import ModelsConfig
from easydistill.config.training import LoraConfig
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import ConfigError, DataError, ModelError
from easydistill.methods.sft import trainer as supervised
from easydistill.methods.sft.batching import IGNORE, EpochSampler, TokenRow, collate, pack
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared import compat
from easydistill.methods.shared.checkpoints import last_whole_checkpoint
from easydistill.methods.shared.compat import (
    FusedTrainer,
    check_head,
    cross_entropy_loss,
    fuse_loss,
    training_arguments,
    unfuse_loss,
)
from easydistill.models.head import Head, body_of
from easydistill.models.student import Student, build_student

VOCABULARY = 300


def rows(count: int, seed: int = 0, longest: int = 40) -> list[TokenRow]:
    generator = random.Random(seed)
    made = []
    for index in range(count):
        length = generator.randint(6, longest)
        prompt = generator.randint(2, length - 2)
        ids = [generator.randrange(5, VOCABULARY) for _ in range(length)]
        made.append(TokenRow(f"row-{index}", ids, [False] * prompt + [True] * (length - prompt)))
    return made


def student(tiny_model: Path) -> Student:
    return build_student(ModelsConfig(student=str(tiny_model)), torch.float32)


def config(**values: Any) -> TrainingConfig:
    base: dict[str, Any] = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "bf16": False,
        "max_length": 64,
        "logging_steps": 1,
        "optim": "adamw_torch",
    }
    return TrainingConfig(**(base | values))


def run(
    tiny_model: Path, tmp_path: Path, made: list[TokenRow], stop: StopSignal | None = None, **values: Any
) -> Student:
    trained = student(tiny_model)
    supervised.train(trained, made, config(**values), tmp_path, Reporter(None, quiet=True), stop or StopSignal())
    return trained


def weights(trained: Student) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trained.model.state_dict().items()}


def loss_and_gradients(model: Any, batches: list[dict[str, torch.Tensor]]) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of one optimiser step over micro-batches, normalised by the count over all of them."""
    model.zero_grad()
    count = sum(int((batch["labels"][:, 1:] != IGNORE).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = model(**batch, num_items_in_batch=count)["loss"]
        loss.backward()
        total += float(loss.detach())
    return total, [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def assert_same(first: tuple[float, list[torch.Tensor]], second: tuple[float, list[torch.Tensor]]) -> None:
    assert first[0] == pytest.approx(second[0], rel=1e-5)
    for one, other in zip(first[1], second[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.fixture
def fused(tiny_model: Path) -> Any:
    model = student(tiny_model).model
    fuse_loss(model, cross_entropy_loss(1 << 20))
    model.train()
    return model


def test_the_loss_is_the_models_own(tiny_model: Path, fused: Any) -> None:
    batch = collate([[row] for row in rows(6)], pad=0)
    plain = student(tiny_model).model
    expected = plain(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    assert float(fused(**batch)["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_padding_does_not_change_the_step(fused: Any) -> None:
    made = rows(8)
    padded = collate([[row] for row in made], pad=0)
    alone = [collate([[row]], pad=0) for row in made]
    assert_same(loss_and_gradients(fused, [padded]), loss_and_gradients(fused, alone))


def test_the_padding_token_does_not_matter(fused: Any) -> None:
    made = [[row] for row in rows(5)]
    assert_same(loss_and_gradients(fused, [collate(made, pad=0)]), loss_and_gradients(fused, [collate(made, pad=123)]))


def test_packed_rows_give_the_step_of_padded_rows(fused: Any) -> None:
    made = rows(12)
    packs = pack(made, 64)
    assert len(packs) < len(made)
    assert_same(
        loss_and_gradients(fused, [collate([[row] for row in made], pad=0)]),
        loss_and_gradients(fused, [collate(packs, pad=0)]),
    )


def test_a_row_in_a_pack_does_not_see_its_neighbour(fused: Any) -> None:
    first, second, other = rows(3)
    hidden = body_of(fused)
    with torch.inference_mode():
        outputs = []
        for neighbour in (first, other):
            batch = collate([[neighbour, second]], pad=0)
            start = len(neighbour.ids)
            out = hidden(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
            outputs.append(out.last_hidden_state[0, start:])
    torch.testing.assert_close(outputs[0], outputs[1])


def test_accumulation_does_not_change_the_step(fused: Any) -> None:
    made = rows(8)
    one = [collate([[row] for row in made], pad=0)]
    eight = [collate([[row]], pad=0) for row in made]
    assert_same(loss_and_gradients(fused, one), loss_and_gradients(fused, eight))


def test_trainer_normalises_by_the_global_token_count(tiny_model: Path, tmp_path: Path) -> None:
    """1 × 8 and 8 × 1 rows give the same weights, although rows have very different numbers of answer tokens."""
    made = rows(8)
    # Plain SGD: Adam would magnify rounding to steps of the size of the learning rate.
    kind: dict[str, Any] = {
        "optim": "sgd",
        "learning_rate": 0.1,
        "group_by_length": False,
        "max_grad_norm": 0,
        "warmup_steps": 0,
    }
    one = run(tiny_model, tmp_path / "a", made, per_device_train_batch_size=8, gradient_accumulation_steps=1, **kind)
    eight = run(tiny_model, tmp_path / "b", made, per_device_train_batch_size=1, gradient_accumulation_steps=8, **kind)
    start = weights(student(tiny_model))
    moved = 0.0
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights(eight)[name], rtol=1e-4, atol=1e-6)
        moved = max(moved, float((value - start[name]).abs().max()))
    assert moved > 1e-3


def test_training_learns(tiny_model: Path, tmp_path: Path) -> None:
    made = rows(16)
    model = student(tiny_model)
    outcome = supervised.train(
        model,
        made,
        config(num_train_epochs=12),
        tmp_path,
        Reporter(tmp_path / "metrics.jsonl", quiet=True),
        StopSignal(),
    )
    fuse_loss(model.model, cross_entropy_loss(1 << 20))
    batch = collate([[row] for row in made], pad=0)
    untrained = student(tiny_model).model
    fuse_loss(untrained, cross_entropy_loss(1 << 20))
    assert float(model.model(**batch)["loss"].detach()) < 0.7 * float(untrained(**batch)["loss"].detach())
    assert outcome.steps == 24
    assert outcome.trained_tokens == sum(sum(row.mask) for row in made)
    assert (tmp_path / "metrics.jsonl").read_text().count('"loss"') == 24


def to_be_killed(packing: bool) -> dict[str, Any]:
    return {
        "num_train_epochs": 3,
        "save_steps": 2,
        "packing": packing,
        "per_device_train_batch_size": 2 if packing else 4,
        "optim": "adamw_torch_fused",
        "lora": None,
    }


@pytest.fixture(scope="module")
def uninterrupted(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[bool], dict[str, torch.Tensor]]:
    """Weights of the training that nothing kills, with packing and without, made once for all that compare with it."""

    @cache
    def made(packing: bool) -> dict[str, torch.Tensor]:
        folder = tmp_path_factory.mktemp("uninterrupted")
        return weights(run(tiny_model, folder, rows(30, longest=30), **to_be_killed(packing)))

    return made


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("die_at", [1, 4, 8])
def test_a_killed_training_ends_in_the_same_weights_bit_for_bit(
    tiny_model: Path,
    uninterrupted: Callable[[bool], dict[str, torch.Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    die_at: int,
    packing: bool,
) -> None:
    made = rows(30, longest=30)
    values = to_be_killed(packing)
    whole = uninterrupted(packing)
    with killed_at(monkeypatch, die_at):
        run(tiny_model, tmp_path / "killed", made, **values)
    resumed = weights(run(tiny_model, tmp_path / "killed", made, **values))
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


@pytest.mark.parametrize("lora", [None, LoraConfig(r=4)])
def test_a_training_killed_after_its_last_step_is_not_trained_further(
    tiny_model: Path, tmp_path: Path, lora: LoraConfig | None
) -> None:
    """30 rows, four per micro-batch: four steps per epoch, the last step is in the middle of the second epoch."""
    made = rows(30)
    whole = weights(run(tiny_model, tmp_path, made, max_steps=5, lora=lora))
    again = student(tiny_model)
    settings = config(max_steps=5, lora=lora)
    outcome = supervised.train(again, made, settings, tmp_path, Reporter(None, quiet=True), StopSignal())
    assert (outcome.steps, outcome.resumed_from_step) == (5, 5)
    assert outcome.final_loss is not None
    assert all(torch.equal(value, weights(again)[name]) for name, value in whole.items())
    assert again.model(input_ids=torch.tensor([[5, 6, 7]])).logits.shape[1] == 3


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_adapters_on_the_output_layer_are_refused(target: str, tiny_model: Path, tmp_path: Path) -> None:
    """The fused loss bypasses the layer's forward, so adapters would not be trained. Its weights are tied."""
    with pytest.raises(ConfigError, match="output layer"):
        run(tiny_model, tmp_path, rows(8), lora=LoraConfig(r=4, target_modules=["q_proj", target]))


def test_steps_are_logged_under_the_stage_that_is_named(tiny_model: Path, tmp_path: Path) -> None:
    reporter = Reporter(tmp_path / "metrics.jsonl", quiet=True)
    stop = StopSignal()
    supervised.train(student(tiny_model), rows(8), config(), tmp_path, reporter, stop, stage="cold_start")
    assert {json.loads(line)["stage"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()} == {
        "cold_start"
    }


def test_an_incomplete_checkpoint_is_not_used(tiny_model: Path, tmp_path: Path) -> None:
    made = rows(24)
    whole = weights(run(tiny_model, tmp_path / "whole", made, num_train_epochs=2))
    stop = StopSignal()
    run(tiny_model, tmp_path / "torn", made, num_train_epochs=2, save_steps=1, save_total_limit=2, max_steps=3)
    shutil.rmtree(tmp_path / "torn")
    # A checkpoint without its marker: its weights are garbage and must not be read.
    torn = tmp_path / "torn" / "checkpoint-2"
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"garbage")
    resumed = weights(run(tiny_model, tmp_path / "torn", made, stop, num_train_epochs=2))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_request_to_stop_saves_and_returns(tiny_model: Path, tmp_path: Path) -> None:
    stop = StopSignal()
    stop.request()
    trained = student(tiny_model)
    outcome = supervised.train(trained, rows(24), config(), tmp_path, Reporter(None, quiet=True), stop)
    assert outcome.steps == 1
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


def test_old_checkpoints_are_removed(tiny_model: Path, tmp_path: Path) -> None:
    run(tiny_model, tmp_path, rows(40), save_steps=1, save_total_limit=2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]


def test_lora_changes_the_adapted_layers_only_and_is_merged(tiny_model: Path, tmp_path: Path) -> None:
    trained = run(tiny_model, tmp_path, rows(16), lora=LoraConfig(r=4), num_train_epochs=2)
    before, after = weights(student(tiny_model)), weights(trained)
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("proj" in name for name in changed)


def test_gradient_checkpointing_gives_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    plain = weights(run(tiny_model, tmp_path / "a", rows(8), optim="sgd"))
    saved = weights(run(tiny_model, tmp_path / "b", rows(8), optim="sgd", gradient_checkpointing=True))
    for name, value in plain.items():
        torch.testing.assert_close(value, saved[name])


def test_nothing_to_train_on_is_a_clear_error(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to train on"):
        run(tiny_model, tmp_path, [])


def test_an_infinite_loss_stops_the_run(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="learning_rate"):
        run(tiny_model, tmp_path, rows(64), learning_rate=1e30, optim="sgd", max_grad_norm=0, num_train_epochs=4)


# --- contracts with transformers, one for each override in methods/shared/compat.py ----------------------------------


def test_every_training_argument_is_known_to_the_installed_transformers(tmp_path: Path) -> None:
    arguments = training_arguments(TrainingConfig(warmup_ratio=0.25), tmp_path, torch.device("cpu"))
    assert arguments.get_warmup_steps(100) == 25
    assert training_arguments(TrainingConfig(warmup_steps=7), tmp_path, torch.device("cpu")).get_warmup_steps(100) == 7
    assert arguments.report_to == []


def test_recomputing_has_the_name_that_transformers_does_not_warn_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers 5.24 warns of `gradient_checkpointing`, whatever its value."""
    known = set(inspect.signature(compat.TrainingArguments.__init__).parameters) | {"activation_checkpointing"}
    keywords = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in sorted(known - {"self"})]

    class Newer:
        def __init__(self, **values: Any) -> None:
            self.values = values

    Newer.__init__.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    monkeypatch.setattr(compat, "TrainingArguments", Newer)
    given: Any = training_arguments(TrainingConfig(gradient_checkpointing=True), tmp_path, torch.device("cpu"))
    assert given.values["activation_checkpointing"] is True
    assert "gradient_checkpointing" not in given.values


def test_trainer_uses_our_sampler_and_counts_tokens_itself(tiny_model: Path, tmp_path: Path) -> None:
    model = student(tiny_model).model
    sampler = EpochSampler([1], 1, 0, 0)
    trainer = FusedTrainer(
        model=model, args=training_arguments(config(), tmp_path, torch.device("cpu")), sampler=sampler
    )
    assert trainer._get_train_sampler() is sampler
    batch = collate([[row] for row in rows(3)], pad=0)
    assert int(trainer._get_num_items_in_batch([batch, batch], torch.device("cpu"))) == 2 * int(
        (batch["labels"] != IGNORE).sum()
    )


def test_rows_that_are_not_packed_are_not_searched_for_packs(fused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search would make the CPU wait for a GPU in every step."""

    def searched(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", searched)
    made = rows(4)
    fused(**collate([[row] for row in made], pad=0))
    with pytest.raises(AssertionError):
        fused(**collate([made], pad=0))


def test_a_head_that_is_not_linear_is_refused(tiny_model: Path) -> None:
    model = student(tiny_model).model
    check_head(model)
    original = model.forward

    def odd(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        output.logits = output.logits * 2 + 1
        return output

    model.forward = odd
    with pytest.raises(ModelError, match="fused loss"):
        check_head(model)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("cohere", {"logit_scale": 0.25}),
        ("falcon_h1", {"lm_head_multiplier": 0.3}),
        ("granite", {"logits_scaling": 6.0}),
        ("hyperclovax", {"logits_scaling": 6.0}),
    ],
)
def test_the_scaling_of_logits_is_that_of_the_family(kind: str, values: dict[str, float]) -> None:
    model = architectures.tiny_model(kind, **values)
    with torch.no_grad():
        # Logits that differ by more than the tolerance of the check if they are scaled otherwise.
        model.get_output_embeddings().weight.mul_(50)
    check_head(model)
    assert Head.of(model).scale != 1


def test_unfusing_gives_logits_back(fused: Any) -> None:
    unfuse_loss(fused)
    assert fused(input_ids=torch.tensor([[5, 6, 7]])).logits.shape[1] == 3


# --- batching ----------------------------------------------------------------------------------------------------


def test_packs_hold_every_row_once_within_the_limit() -> None:
    made = rows(200, seed=4)
    packs = pack(made, 100)
    assert sorted(row.id for item in packs for row in item) == sorted(row.id for row in made)
    assert max(sum(len(row.ids) for row in item) for item in packs) <= 100
    total = sum(len(row.ids) for row in made)
    assert len(packs) <= 1.1 * (total / 100) + 1


@pytest.mark.parametrize("window", [0, 16, 64])
def test_an_epoch_holds_every_row_once_and_epochs_differ(window: int) -> None:
    lengths = [random.Random(1).randint(1, 100) for _ in range(101)]
    sampler = EpochSampler(lengths, 4, window, seed=7)
    epochs = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert all(sorted(order) == list(range(101)) for order in epochs)
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]


def test_grouping_by_length_saves_padding() -> None:
    generator = random.Random(0)
    lengths = [generator.randint(1, 500) for _ in range(640)]

    def padding(window: int) -> int:
        order = list(EpochSampler(lengths, 8, window, seed=0))
        batches = [order[at : at + 8] for at in range(0, len(order), 8)]
        return sum(max(lengths[i] for i in batch) * len(batch) - sum(lengths[i] for i in batch) for batch in batches)

    assert padding(64) < 0.4 * padding(0)
