"""Packs on a GPU: one sequence of all rows of a micro-batch, and attention that computes nothing across rows.

transformers keeps packed rows apart with a mask: SDPA then computes every pair of positions of a pack and drops those
of different rows, and a mask of [B, 1, T, T] is made in every step. PyTorch's `varlen_attn` (FlashAttention, part of
torch from 2.10 on) takes the rows' bounds instead. It is registered as an attention of transformers here, under a name
of its own; models that pass their keyword arguments on to it, as nearly all do, can use it.

Shapes: T tokens of all rows, H query heads, K key heads, D their width, R rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from easydistill.methods.sft.batching import TokenRow, collate

NAME = "easydistill_varlen"
"""Of the attention, in a model's config."""
WIDEST_HEAD = 256
"""FlashAttention's limit for D."""
_UNKNOWN = ("softcap", "s_aux", "sinks")
"""Arguments with which some families ask for another attention than plain softmax."""

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int, float, int | None], Tensor]
"""(query [T, H, D], key and value [T, K, D], bounds [R+1], longest row, scale, window) → [T, H, D], causal per row."""


def can_attend(on: torch.device, dtype: torch.dtype, model: Any, longest: int) -> bool:
    """Whether `varlen_attn` is there and may suit a model and rows up to `longest`; `check_packing` then tries it.

    What that cannot try is refused here: windows and chunks shorter than rows, which some families put into the mask.
    """
    if on.type != "cuda" or dtype not in {torch.bfloat16, torch.float16}:
        return False
    try:
        from torch.nn.attention import varlen  # noqa: F401
    except ImportError:
        return False
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    parts = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    whole = all(longest <= part for part in parts if isinstance(part, int))
    return whole and int(width) <= WIDEST_HEAD and not getattr(config, "attention_dropout", 0.0)


def attention_of(model: Any) -> str:
    """The name of a model's attention."""
    return str(model.config.get_text_config()._attn_implementation)


def use_varlen(model: Any, attend: Attend | None = None) -> None:
    """Let a model attend within rows by their bounds.

    Args:
        attend: the operator; by default torch's.
    """
    from transformers import AttentionInterface

    # An attention without a mask function of its own gets no mask: the bounds say it all.
    AttentionInterface.register(NAME, _attention(attend or flash_attend))
    model.set_attn_implementation(NAME)


def collate_flat(items: Sequence[list[TokenRow]], pad: int, longest: int, multiple: int = 1) -> dict[str, Any]:
    """One micro-batch as a single sequence [1, T] of all rows, with their bounds.

    Args:
        longest: no row is longer.
        multiple: T is a multiple of it; padding is one more row.
    """
    rows = [row for item in items for row in item]
    batch: dict[str, Any] = dict(collate([rows], pad, multiple))
    total = batch["input_ids"].shape[1]
    ends = [*accumulate(len(row) for row in rows)]
    if ends[-1] < total:
        ends.append(total)
    if "position_ids" not in batch:
        batch["position_ids"] = torch.arange(total)[None]
    batch["cu_seq_lens_q"] = torch.tensor([0, *ends], dtype=torch.int32)
    # A bound that does not change from batch to batch: a compiled layer would be compiled again for another.
    batch["max_length_q"] = max(longest, multiple)
    return batch


def _attention(attend: Attend) -> Callable[..., tuple[Tensor, None]]:
    """An attention function as transformers calls it: [1, heads, T, D] in, [1, T, H, D] out."""

    def attention(
        module: Any,
        query_1HTD: Tensor,
        key_1KTD: Tensor,
        value_1KTD: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        cu_seq_lens_q: Tensor | None = None,
        max_length_q: int | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        asked = [name for name in _UNKNOWN if others.get(name) is not None]
        if cu_seq_lens_q is None or max_length_q is None or attention_mask is not None or dropout or asked:
            raise ValueError(f"{type(module).__name__} needs more of an attention than the bounds of rows")
        scale = scaling if scaling is not None else query_1HTD.shape[-1] ** -0.5
        query_THD, key_TKD, value_TKD = (part[0].transpose(0, 1) for part in (query_1HTD, key_1KTD, value_1KTD))
        out_THD = attend(query_THD, key_TKD, value_TKD, cu_seq_lens_q, max_length_q, scale, sliding_window)
        return out_THD[None], None

    return attention


def flash_attend(
    query_THD: Tensor,
    key_TKD: Tensor,
    value_TKD: Tensor,
    bounds: Tensor,
    longest: int,
    scale: float,
    window: int | None,
) -> Tensor:
    """torch's `varlen_attn`; a window of W lets a token see W tokens, itself included."""
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"scale": scale}
    known = inspect.signature(varlen_attn).parameters
    if "window_size" in known:
        options["window_size"] = (-1 if window is None else window - 1, 0)
    elif window is None:
        options["is_causal"] = True
    else:
        raise ValueError("this torch has no attention within windows of rows")
    if "enable_gqa" in known:
        options["enable_gqa"] = True
    elif (groups := query_THD.shape[1] // key_TKD.shape[1]) > 1:
        key_TKD, value_TKD = (part.repeat_interleave(groups, 1) for part in (key_TKD, value_TKD))
    query, key, value = (part.contiguous() for part in (query_THD, key_TKD, value_TKD))
    out_THD: Any = varlen_attn(query, key, value, bounds, bounds, longest, longest, **options)
    return out_THD  # type: ignore[no-any-return]
