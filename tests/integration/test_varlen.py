"""Packs as one sequence with the bounds of its rows: the steps of rows alone, whatever stands beside a row.

torch's own operator needs a GPU. Everything around it is tried here with an operator that attends row by row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.test_supervised import assert_same, loss_and_gradients, rows, student, weights
from tests.support.architectures import tiny_model as architecture
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from easydistill.config.models import ModelsConfig
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import ConfigError
from easydistill.methods.sft import trainer as supervised
from easydistill.methods.sft import varlen
from easydistill.methods.sft.batching import TokenRow, collate, pack
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.sft.packing import check_packing
from easydistill.methods.sft.varlen import attention_of, can_attend, collate_flat, use_varlen
from easydistill.methods.shared.compat import cross_entropy_loss, fuse_loss
from easydistill.methods.shared.strategies.base import Strategy
from easydistill.models.student import build_student


def row_by_row(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float, window: int | None
) -> Tensor:
    """What `varlen_attn` computes, by its documentation."""
    found = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        assert end - start <= longest
        parts = [part[start:end].transpose(0, 1)[None] for part in (query, key, value)]
        at = torch.arange(end - start)
        seen = at[:, None] >= at
        if window is not None:
            seen &= at[:, None] - at < window
        found.append(scaled_dot_product_attention(*parts, attn_mask=seen, scale=scale, enable_gqa=True)[0])
    return torch.cat([part.transpose(0, 1) for part in found])


@pytest.fixture
def fused(tiny_model: Path) -> Any:
    model = student(tiny_model).model
    fuse_loss(model, cross_entropy_loss(1 << 20))
    return model.train()


@pytest.mark.parametrize("multiple", [1, 64])
def test_one_sequence_gives_the_step_of_padded_rows(fused: Any, multiple: int) -> None:
    made = rows(12)
    padded = loss_and_gradients(fused, [collate([[row] for row in made], pad=0)])
    use_varlen(fused, row_by_row)
    batch = collate_flat(pack(made, 64), 0, 64, multiple)
    assert batch["input_ids"].shape[0] == 1 and batch["input_ids"].shape[1] % multiple == 0
    assert_same(padded, loss_and_gradients(fused, [batch]))


def test_the_bounds_say_where_rows_end() -> None:
    made = rows(5)
    batch = collate_flat([made[:2], made[2:]], 0, 64, 32)
    bounds = batch["cu_seq_lens_q"].tolist()
    assert bounds[:6] == [sum(len(row) for row in made[:at]) for at in range(6)]
    assert bounds[-1] == batch["input_ids"].shape[1] and batch["cu_seq_lens_q"].dtype == torch.int32
    starts = batch["position_ids"][0].eq(0).nonzero().flatten().tolist()
    assert starts == bounds[:-1]


def test_the_check_takes_an_attention_that_keeps_to_the_bounds(tiny_model: Path) -> None:
    model = student(tiny_model).model
    flat = lambda items, pad: collate_flat(items, pad, 64)  # noqa: E731
    check_packing(model, 64, flat, lambda: use_varlen(model, row_by_row))
    assert attention_of(model) == varlen.NAME


def test_the_check_finds_an_attention_that_does_not(tiny_model: Path) -> None:
    model = student(tiny_model).model

    def across(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, *others: Any) -> Tensor:
        return row_by_row(query, key, value, bounds[[0, -1]], *others)

    flat = lambda items, pad: collate_flat(items, pad, 64)  # noqa: E731
    with pytest.raises(ConfigError, match="sees the one before it"):
        check_packing(model, 64, flat, lambda: use_varlen(model, across))


def test_a_window_of_attention_is_passed_on() -> None:
    model = architecture("mistral", sliding_window=8)
    windows = []

    def noted(*args: Any) -> Tensor:
        windows.append(args[-1])
        return row_by_row(*args)

    flat = lambda items, pad: collate_flat(items, pad, 64)  # noqa: E731
    check_packing(model, 64, flat, lambda: use_varlen(model, noted))
    assert set(windows) == {8}


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "qwen3_moe", "phi3", "olmo2", "gpt_neox", "gpt2"])
def test_families_whose_packs_can_be_one_sequence(name: str) -> None:
    model = architecture(name)
    flat = lambda items, pad: collate_flat(items, pad, 128)  # noqa: E731
    check_packing(model, 128, flat, lambda: use_varlen(model, row_by_row))


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_families_that_need_another_attention_are_refused(name: str) -> None:
    """Soft-capped scores, sinks: an attention by bounds would leave them out."""
    model = architecture(name)
    flat = lambda items, pad: collate_flat(items, pad, 128)  # noqa: E731
    with pytest.raises(ConfigError, match=r"fails on packed rows|sees the one before|other logits"):
        check_packing(model, 128, flat, lambda: use_varlen(model, row_by_row))


def train(tiny_model: Path, where: Path, made: list[TokenRow], said: list[str]) -> dict[str, Tensor]:
    config = TrainingConfig(
        num_train_epochs=1,
        packing=True,
        max_length=64,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        optim="sgd",
        learning_rate=0.1,
        bf16=False,
    )
    trained = build_student(ModelsConfig(student=str(tiny_model)), torch.float32)
    before = attention_of(trained.model)

    class Telling(Reporter):
        def say(self, text: str, *args: Any, **kwargs: Any) -> None:
            said.append(text)

    supervised.train(trained, made, config, where, Telling(None, quiet=True), StopSignal())
    assert attention_of(trained.model) == before
    return weights(trained)


def test_a_training_on_one_sequence_a_batch_gives_the_same_weights(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, but for the operator."""
    made, said = rows(40), list[str]()
    masked = train(tiny_model, tmp_path / "masked", made, said)
    called = []

    def counted(*args: Any) -> Tensor:
        called.append(len(args[0]))
        return row_by_row(*args)

    monkeypatch.setattr(varlen, "flash_attend", counted)
    monkeypatch.setattr(supervised, "can_attend", lambda *args: True)
    bounded = train(tiny_model, tmp_path / "bounded", made, said)
    assert called
    for name, value in masked.items():
        torch.testing.assert_close(value, bounded[name], rtol=1e-4, atol=1e-6)


def test_an_attention_that_does_not_suit_is_told_and_the_mask_used(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, said = rows(40), list[str]()
    masked = train(tiny_model, tmp_path / "masked", made, said)

    def unsuited(*args: Any) -> Tensor:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer")

    monkeypatch.setattr(varlen, "flash_attend", unsuited)
    monkeypatch.setattr(supervised, "can_attend", lambda *args: True)
    found = train(tiny_model, tmp_path / "fallen-back", made, said)
    assert any("kept apart with a mask" in line and "Ampere" in line for line in said)
    for name, value in masked.items():
        assert torch.equal(value, found[name])


def test_a_student_in_parts_is_not_moved_whole_to_a_gpu_to_try_the_attention(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, said = rows(40), list[str]()
    masked = train(tiny_model, tmp_path / "masked", made, said)
    monkeypatch.setattr(Strategy, "shards", True)
    monkeypatch.setattr(varlen, "flash_attend", row_by_row)
    monkeypatch.setattr(supervised, "can_attend", lambda *args: True)
    monkeypatch.setattr(supervised, "_varlen_problem", lambda *args: pytest.fail("the whole student was moved"))
    found = train(tiny_model, tmp_path / "parts", made, said)
    assert any("kept apart with a mask" in line for line in said)
    for name, value in masked.items():
        assert torch.equal(value, found[name])


def test_it_is_for_gpus_that_compute_in_16_bits_and_for_attention_to_whole_rows(tiny_model: Path) -> None:
    model = student(tiny_model).model
    gpu = torch.device("cuda")
    assert can_attend(gpu, torch.bfloat16, model, 64)
    assert not can_attend(gpu, torch.float32, model, 64)
    assert not can_attend(torch.device("cpu"), torch.bfloat16, model, 64)
    model.config.attention_dropout = 0.1
    assert not can_attend(gpu, torch.bfloat16, model, 64)
    windowed = architecture("mistral", sliding_window=48)
    assert can_attend(gpu, torch.bfloat16, windowed, 48) and not can_attend(gpu, torch.bfloat16, windowed, 49)
    chunked = architecture("llama4_text")
    assert can_attend(gpu, torch.bfloat16, chunked, 64) and not can_attend(gpu, torch.bfloat16, chunked, 65)
