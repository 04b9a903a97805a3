"""Attention of one new token per row on a CPU, for models whose query heads share keys.

torch's kernel for a CPU wants as many key heads as query heads, so transformers copies keys and values once per group,
and the kernel packs them again: two thirds of a step of a small model. Here the queries that share keys are multiplied
with them together. The scores are those of transformers' `sdpa`, up to rounding.

Shapes: B rows, H key heads, G query heads per key head, D head width, T tokens seen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NAME = "easydistill_grouped"
"""Under which transformers knows this attention."""
_REPLACED = "sdpa"


def _grouped(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: queries (B, H·G, 1, D) on keys and values (B, H, T, D) → (B, 1, H·G, D)."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    biased = options.get("position_bias") is not None
    if query.shape[2] != 1 or dropout or biased or query.shape[1] % key.shape[1]:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return plain
    rows, heads, _, width = query.shape
    query_BHGD = query.reshape(rows, key.shape[1], heads // key.shape[1], width)
    scores_BHGT = (query_BHGD @ key.transpose(-1, -2)).float()
    scores_BHGT = scores_BHGT * (width**-0.5 if scaling is None else scaling)
    if attention_mask is not None:
        seen = attention_mask.dtype == torch.bool
        # A mask has one entry for all heads; one per head would have to be split into groups.
        assert attention_mask.shape[1] == 1
        masked = scores_BHGT.masked_fill(~attention_mask, -torch.inf) if seen else scores_BHGT + attention_mask
        scores_BHGT = masked
    mixed_BHGD = scores_BHGT.softmax(-1).to(value.dtype) @ value
    return mixed_BHGD.reshape(rows, 1, heads, value.shape[-1]), None


@contextlib.contextmanager
def grouped_attention(model: Any) -> Iterator[None]:
    """Let `model` use this attention, if it is on a CPU and uses `sdpa`."""
    configs = {}
    if model.device.type == "cpu":
        found = [part.config for part in model.modules() if hasattr(part, "config")]
        configs = {id(config): config for config in found if implementation(config) == _REPLACED}
    if configs:
        _register()
    for config in configs.values():
        config._attn_implementation = NAME
    try:
        yield
    finally:
        for config in configs.values():
            config._attn_implementation = _REPLACED


def implementation(config: Any) -> str | None:
    """The name of the attention that a model's config asks for."""
    found: str | None = getattr(config, "_attn_implementation", None)
    return found


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _grouped)
    AttentionMaskInterface.register(NAME, sdpa_mask)
