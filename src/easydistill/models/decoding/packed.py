"""Linear layers whose weights are laid out once for many products of few rows. For CPUs, in bfloat16.

A processor multiplies bfloat16 by weights in blocks of its own, and PyTorch lays them out so in every product. Where a
step of decoding has a few rows, that takes as long as the product: with the 26 layers of a small model and its head, in
bfloat16 without tiles (AVX512), 4 rows took 20 ms instead of 37, 16 rows 34 instead of 53, and laying them out once
took 200. The numbers are the same, bit for bit.

oneDNN's layout is reached by what PyTorch's own compiler calls; where that is missing, layers stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

WORTH = 24
"""Steps of decoding from which on laying out costs less than it saves."""


@contextlib.contextmanager
def packed_linears(model: Any, steps: int) -> Iterator[None]:
    """Let a model's linear layers multiply by weights as they are now, laid out once; without gradients.

    Args:
        model: on a CPU and computing in bfloat16 (its own, or autocast's), or it stays as it is.
        steps: of decoding that are to come, at most.
    """
    layers = _layers(model) if steps >= WORTH and _available() else []
    for layer in layers:
        layer.forward = _packed(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _available() -> bool:
    operations = torch.ops.mkldnn
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    return all(hasattr(operations, name) for name in names) and bool(operations._is_mkldnn_bf16_supported())


def _layers(model: Any) -> list[Any]:
    """The linear layers of a model that nobody has changed, if they multiply in bfloat16."""
    kinds = {torch.bfloat16}
    if torch.is_autocast_enabled("cpu"):
        if torch.get_autocast_dtype("cpu") != torch.bfloat16:
            return []
        kinds.add(torch.float32)

    def suits(layer: Any) -> bool:
        weight = layer.weight
        plain = type(layer) is nn.Linear and "forward" not in vars(layer) and type(weight) is nn.Parameter
        return plain and weight.device.type == "cpu" and weight.dtype in kinds

    return [layer for layer in model.modules() if isinstance(layer, nn.Linear) and suits(layer)]


def _packed(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = layer.weight.detach().to(torch.bfloat16)
    bias = None if layer.bias is None else layer.bias.detach().to(torch.bfloat16)
    return partial(_multiply, weight=torch.ops.mkldnn._reorder_linear_weight(weight, None), bias=bias)


def _multiply(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows.to(torch.bfloat16), weight, bias, "none", [], "")
    return found
