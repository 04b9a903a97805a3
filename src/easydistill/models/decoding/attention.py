"""Attention of one new token per row, for models whose query heads share keys.

With a mask, transformers copies keys and values once per query head at every token; on a CPU torch's kernel then packs
the copies again, together two thirds of a step of a small model. Here the queries that share keys are multiplied with
them together. The scores are those of transformers' `sdpa`, up to rounding.

Shapes: B rows, H key heads, G query heads per key head, D head width, T tokens seen.
"""

from __future__ import annotations

import contextlib
import math
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
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    biased = options.get("position_bias") is not None
    if query.shape[2] != 1 or dropout or biased or query.shape[1] % key.shape[1]:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return plain
    rows, heads, _, width = query.shape
    query_BHGD = query.reshape(rows, key.shape[1], heads // key.shape[1], width)
    # A mask has one entry for all heads; one per head would have to be split into groups.
    assert attention_mask is None or attention_mask.shape[1] == 1
    attend = multiplied if query.device.type == "cpu" else by_kernel
    mixed_BHGD = attend(query_BHGD, key, value, attention_mask, scaling)
    return mixed_BHGD.reshape(rows, 1, heads, value.shape[-1]), None


def multiplied(
    query_BHGD: torch.Tensor,
    key_BHTD: torch.Tensor,
    value_BHTD: torch.Tensor,
    mask_B11T: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """Attention as two matrix products, which are faster on a CPU than its kernel for so few queries."""
    import torch

    seen = key_BHTD.shape[2]
    whole_BHDS, whole_BHSD = buffered(key_BHTD.transpose(-1, -2), 3), buffered(value_BHTD, 2)
    scores_BHGT = (query_BHGD @ whole_BHDS)[..., :seen].float()
    scores_BHGT = scores_BHGT * (query_BHGD.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask_B11T is not None and mask_B11T.dtype == torch.bool:
        scores_BHGT = scores_BHGT.masked_fill(~mask_B11T, -torch.inf)
    elif mask_B11T is not None:
        scores_BHGT = scores_BHGT + mask_B11T
    probs_BHGT = scores_BHGT.softmax(-1).to(value_BHTD.dtype)
    probs_BHGS = torch.nn.functional.pad(probs_BHGT, (0, whole_BHSD.shape[2] - seen))
    mixed_BHGD: torch.Tensor = probs_BHGS @ whole_BHSD
    return mixed_BHGD


def buffered(part: torch.Tensor, dim: int) -> torch.Tensor:
    """The contiguous tensor of which `part` is the beginning along a dimension; `part` itself if it is of none.

    torch copies a part before a product of many matrices, at every token.
    """
    whole = list(part.shape)
    inner = part.stride(dim)
    if inner != math.prod(whole[dim + 1 :]) or part.stride(dim - 1) % inner:
        return part
    whole[dim] = part.stride(dim - 1) // inner
    strides = [math.prod(whole[at + 1 :]) for at in range(part.dim())]
    inside = part.storage_offset() + math.prod(whole) <= part.untyped_storage().nbytes() // part.element_size()
    if list(part.stride()) != strides or whole[dim] < part.shape[dim] or not inside:
        return part
    return part.as_strided(whole, strides)


def by_kernel(
    query_BHGD: torch.Tensor,
    key_BHTD: torch.Tensor,
    value_BHTD: torch.Tensor,
    mask_B11T: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """Attention by torch's kernel, to which a group's queries are queries of one head."""
    import torch

    return torch.nn.functional.scaled_dot_product_attention(
        query_BHGD, key_BHTD, value_BHTD, attn_mask=mask_B11T, scale=scaling
    )


@contextlib.contextmanager
def grouped_attention(model: Any) -> Iterator[None]:
    """Let `model` use this attention, if it uses `sdpa`."""
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
