"""Packing: an architecture whose packed rows see each other is refused before the first step."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tests.support.architectures import TOKENS, tiny_model

from easydistill.errors import ConfigError
from easydistill.methods.sft.batching import TokenRow, collate
from easydistill.methods.sft.packing import check_packing
from easydistill.methods.shared.compat import check_head, cross_entropy_loss, fuse_loss

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
