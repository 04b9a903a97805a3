"""Attention of short rows on a CPU, in float32: PyTorch's backward pass of it is slower in bfloat16.

Measured with PyTorch 2.13 on a processor with AVX512-BF16 (batch 8, 9 query heads of width 64, 3 key heads), CPU
seconds of forward and backward: rows of 96 tokens 0.48 of bfloat16's, 160 0.57, 256 0.85, 512 1.03, 1,024 1.3. Nothing
is less exact for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

LONGEST = 256
"""Of rows whose attention is computed in float32, in tokens, padding included."""
_NAME = "sdpa"


@contextlib.contextmanager
def attention_in_float32(on: torch.device, bf16: bool) -> Iterator[None]:
    """Let models whose attention is SDPA compute it in float32 for short rows, in trainings in bfloat16 on a CPU."""
    if on.type != "cpu" or not bf16:
        yield
        return
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = ALL_ATTENTION_FUNCTIONS[_NAME]
    ALL_ATTENTION_FUNCTIONS[_NAME] = _in_float32(known)
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS[_NAME] = known


def _in_float32(attend: Callable[..., tuple[Tensor, None]]) -> Callable[..., tuple[Tensor, None]]:
    """transformers' attention function, [B, heads, T, D] in and [B, T, H, D] out, in float32 for short rows."""

    def attention(
        module: Any,
        query_BHTD: Tensor,
        key_BKTD: Tensor,
        value_BKTD: Tensor,
        attention_mask: Tensor | None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        biased = others.get("position_bias") is not None
        if query_BHTD.shape[2] > LONGEST or biased or torch.compiler.is_compiling():
            return attend(module, query_BHTD, key_BKTD, value_BKTD, attention_mask, **others)
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.float()
        with torch.autocast("cpu", enabled=False):
            out_BTHD, weights = attend(
                module, query_BHTD.float(), key_BKTD.float(), value_BKTD.float(), attention_mask, **others
            )
        # What the model is used to.
        return out_BTHD.to(torch.bfloat16), weights

    return attention
