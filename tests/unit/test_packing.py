"""Packing: an architecture whose packed rows see each other is refused before the first step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.architectures import SHAPES, TOKENS, tiny_model
from transformers import AutoConfig

from easydistill.config.models import ModelsConfig
from easydistill.errors import ConfigError
from easydistill.methods.sft.batching import TokenRow, collate
from easydistill.methods.sft.packing import check_packing, packing_issues
from easydistill.methods.shared.compat import check_head, cross_entropy_loss, fuse_loss
from easydistill.models.limits import student_config
from easydistill.models.miniature import miniature

APART = ("llama", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gpt2", "gptj", "phi3", "gpt_neox", "mistral", "olmo2")
LEAKING = ("lfm2", "mamba2", "rwkv", "falcon_h1", "granitemoehybrid", "gpt_oss", "opt", "bloom", "llama4_text")


def losses(model: Any) -> tuple[float, float]:
    """The loss of two rows: packed, and batched."""
    draw = torch.Generator().manual_seed(3)
    rows = [
        TokenRow(str(n), torch.randint(0, TOKENS, (size,), generator=draw).tolist(), [True] * size)
        for n, size in enumerate((48, 40))
    ]
    fuse_loss(model, cross_entropy_loss(1 << 20))
    with torch.inference_mode():
        return tuple(float(model(**collate(items, 0))["loss"]) for items in ([rows], [[row] for row in rows]))  # type: ignore[return-value]


@pytest.mark.parametrize("name", APART)
def test_packed_rows_stay_apart(name: str) -> None:
    model = tiny_model(name)
    check_head(model)
    check_packing(model, 128)
    packed, batched = losses(model)
    assert packed == pytest.approx(batched, rel=1e-5)


@pytest.mark.parametrize("name", LEAKING)
def test_architectures_that_leak_are_refused(name: str) -> None:
    """Each really leaks: the loss of the same two rows differs when they are packed."""
    model = tiny_model(name)
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                # Random weights are so small that the rows hardly influence each other.
                value *= 4
    check_head(model)
    with pytest.raises(ConfigError, match=rf"training\.packing: {re.escape(type(model).__name__)}.*\n.*packing=false"):
        check_packing(model, 128)
    packed, batched = losses(model)
    assert abs(packed - batched) > 1e-6 * batched


def test_chunked_attention_is_tried_across_the_end_of_a_chunk() -> None:
    """Within one chunk of 64 tokens rows are apart, so packs of that length may be used."""
    check_packing(tiny_model("llama4_text"), 64)


def test_a_student_with_few_positions_is_checked_within_them() -> None:
    check_packing(tiny_model("gpt2", n_positions=16), 16)


def configured(name: str, folder: Path, **values: Any) -> ModelsConfig:
    """A student of an architecture of usual size, of which there is only the config."""
    shape = {key: value for key, value in SHAPES.get(name, {}).items() if key in ("layer_types", "pad_token_id")}
    layers = {"layer_types": shape["layer_types"] * 8} if "layer_types" in shape else {}
    total = {"num_hidden_layers": 16} if layers else {}
    config = AutoConfig.for_model(name, **{**shape, **layers, **total, **values})
    config.save_pretrained(folder)
    return ModelsConfig(student=str(folder))


@pytest.mark.parametrize("name", APART)
def test_a_miniature_of_an_architecture_that_packs_is_not_refused(name: str, tmp_path: Path) -> None:
    assert packing_issues(configured(name, tmp_path), 4096) == []
    made = miniature(student_config(ModelsConfig(student=str(tmp_path))))
    # Otherwise it is not refused because it was not tried.
    assert made is not None and sum(value.numel() for value in made.parameters()) < 2_000_000


@pytest.mark.parametrize("name", LEAKING)
def test_a_miniature_of_an_architecture_that_leaks_is_refused(name: str, tmp_path: Path) -> None:
    (issue,) = packing_issues(configured(name, tmp_path), 16_384)
    assert issue.path == "training.packing" and "packing=false" in issue.hint


def test_the_chunks_of_a_miniature_are_those_of_the_student(tmp_path: Path) -> None:
    assert packing_issues(configured("llama4_text", tmp_path, attention_chunk_size=8192), 8192) == []


def test_layers_of_every_kind_are_in_a_miniature() -> None:
    config = AutoConfig.for_model("qwen3_next", num_hidden_layers=48)
    made = miniature(config)
    assert made is not None
    assert set(made.config.layer_types) == set(config.layer_types) and len(made.config.layer_types) == 4


def test_what_cannot_be_made_small_is_left_to_the_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = configured("lfm2", tmp_path)
    assert packing_issues(models, 128)
    monkeypatch.setattr("easydistill.models.miniature._AFFORDABLE", 10)
    assert packing_issues(models, 128) == []


def test_making_a_miniature_leaves_random_numbers_as_they_were() -> None:
    before = torch.random.get_rng_state()
    assert miniature(AutoConfig.for_model("llama")) is not None
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_check_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama").train()
    before = torch.random.get_rng_state()
    check_packing(model, 64)
    assert model.training
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_architecture_that_fails_on_positions_is_refused() -> None:
    model = tiny_model("llama")
    body = model.model.forward
    model.model.forward = lambda input_ids, use_cache: body(input_ids=input_ids, use_cache=use_cache)
    with pytest.raises(ConfigError, match="fails on packed rows"):
        check_packing(model, 64)
