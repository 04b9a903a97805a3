"""Attention in float32 on a CPU: no less exact than in bfloat16, for short rows alone, and gone after a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.test_supervised import config, rows, student
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.methods.sft import cpu_attention
from easydistill.methods.sft import trainer as supervised
from easydistill.methods.sft.batching import TokenRow, collate, pack
from easydistill.methods.sft.cpu_attention import attention_in_float32
from easydistill.methods.shared.compat import cross_entropy_loss, fuse_loss

CPU = torch.device("cpu")


def gradients(model: Any, items: list[list[TokenRow]], *, in_float32: bool) -> list[torch.Tensor]:
    """With autocast to bfloat16."""
    model.zero_grad()
    with attention_in_float32(CPU, in_float32), torch.autocast("cpu", torch.bfloat16):
        model(**collate(items, pad=0))["loss"].backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def error(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    differences = sum(float((one - other).square().sum()) for one, other in zip(found, exact, strict=True))
    return float((differences / sum(float(one.square().sum()) for one in exact)) ** 0.5)


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_are_no_less_exact(tiny_model: Path, packed: bool) -> None:
    model = student(tiny_model).model
    fuse_loss(model, cross_entropy_loss(1 << 20))
    items: Any = pack(rows(12), 64) if packed else [[row] for row in rows(12)]
    model(**collate(items, pad=0))["loss"].backward()
    exact = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    usual = gradients(model, items, in_float32=False)
    found = gradients(model, items, in_float32=True)
    assert any(not torch.equal(one, other) for one, other in zip(found, usual, strict=True))
    assert error(found, exact) < 1.1 * error(usual, exact) < 0.1


def test_it_is_for_short_rows(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = student(tiny_model).model
    fuse_loss(model, cross_entropy_loss(1 << 20))
    items = [[row] for row in rows(4)]
    usual = gradients(model, items, in_float32=False)
    monkeypatch.setattr(cpu_attention, "LONGEST", 8)
    found = gradients(model, items, in_float32=True)
    assert all(torch.equal(one, other) for one, other in zip(found, usual, strict=True))


def test_a_training_uses_it_where_it_computes_in_bfloat16(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, autocasts = ALL_ATTENTION_FUNCTIONS["sdpa"], []

    def seen(module: Any, query: torch.Tensor, *args: Any, **others: Any) -> Any:
        autocasts.append(torch.is_autocast_enabled("cpu"))
        return before(module, query, *args, **others)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", seen)
    supervised.train(
        # Rows that are not packed go without it into one sequence.
        student(tiny_model),
        rows(8),
        config(bf16=True, packing=True),
        tmp_path,
        Reporter(None, quiet=True),
        StopSignal(),
    )
    assert autocasts and not any(autocasts)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is seen
