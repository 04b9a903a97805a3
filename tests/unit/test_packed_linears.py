"""Weights laid out once for decoding: the same numbers as without, and nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from easydistill.models.decoding import packed
from easydistill.models.decoding.packed import WORTH, packed_linears

needs_bf16 = pytest.mark.skipif(not packed._available(), reason="this processor has no products in bfloat16")


class Model(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(48, 80, dtype=dtype), nn.Linear(80, 33, bias=False, dtype=dtype)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.second(torch.nn.functional.silu(self.first(rows)))


def made(dtype: torch.dtype) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(dtype)


def autocast(model: nn.Module) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=next(model.parameters()).dtype == torch.float32)


@needs_bf16
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 1), (1, 1), (3, 17)])
def test_products_are_the_same(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    model, rows = made(dtype), torch.randn(*shape, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad(), autocast(model):
        expected = model(rows)
        with packed_linears(model, WORTH):
            assert all("forward" in vars(layer) for layer in (model.first, model.second))
            found = model(rows)
        again = model(rows)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    assert torch.equal(again, expected)
    assert not any("forward" in vars(layer) for layer in model.modules())


@needs_bf16
def test_weights_are_the_present_ones_each_time() -> None:
    model, rows = made(torch.bfloat16), torch.ones(2, 48, dtype=torch.bfloat16)
    for _ in range(2):
        with torch.no_grad():
            model.first.weight.mul_(2)
            with packed_linears(model, WORTH):
                found = model(rows)
            assert torch.equal(found, model(rows))


@pytest.mark.parametrize(("steps", "dtype"), [(WORTH - 1, torch.bfloat16), (WORTH, torch.float32)])
def test_few_steps_and_other_numbers_are_left_alone(steps: int, dtype: torch.dtype) -> None:
    model = made(dtype)
    with packed_linears(model, steps):
        assert not any("forward" in vars(layer) for layer in model.modules())


def test_layers_that_someone_has_changed_are_left_alone() -> None:
    model = made(torch.bfloat16)
    model.first.forward = changed = lambda rows: rows
    with packed_linears(model, WORTH):
        assert model.first.forward is changed
    assert model.first.forward is changed


@needs_bf16
def test_nothing_stays_after_an_error() -> None:
    model = made(torch.bfloat16)
    with pytest.raises(KeyError), packed_linears(model, WORTH):
        raise KeyError
    assert not any("forward" in vars(layer) for layer in model.modules())
