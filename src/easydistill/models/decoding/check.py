"""Whether a model can be decoded here, told from its numbers.

`generate` knows every class of transformers: recurrent states, windows, caches of a class's own. Decoding here knows
keys and values of whole sequences. A model qualifies if its cache has no other layers and a few steps give the logits
of one forward pass without a cache.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from easydistill.models.decoding.attention import grouped_attention, implementation
from easydistill.models.decoding.batch import SHARED_PREFIX, Batch
from easydistill.models.spread import input_device

if TYPE_CHECKING:
    import torch

_STEPS, _SHORT, _LONG = 2, 3, 6
_DEVIATION = 0.1
"""Largest deviation, as a share of what the earlier tokens change. Rounding in bfloat16 is a few per cent of it; a
cache that is misread shows a quarter and more."""
_known: weakref.WeakKeyDictionary[Any, dict[Any, bool]] = weakref.WeakKeyDictionary()

Make = Callable[[Any, Sequence[list[int]], int], Any]
"""(model, prompts, room) → what goes on with the prompts, as `Batch`."""


def decodes(model: Any, prompt: Sequence[int], make: Make = Batch) -> bool:
    """Whether decoding with `make` gives the model's own logits. Found out once per model.

    Args:
        model: a causal language model, on its device.
        prompt: any prompt's token ids.
    """
    known = _known.setdefault(model, {})
    if make not in known:
        known[make] = _has_plain_cache(model) and _agrees(model, list(prompt), make)
    return known[make]


def _has_plain_cache(model: Any) -> bool:
    from transformers.cache_utils import DynamicCache, DynamicLayer

    config = model.config
    if _is_sharded(model):
        return False
    if config.is_encoder_decoder or implementation(config.get_text_config(decoder=True)) not in ("sdpa", "eager"):
        return False
    if not hasattr(model, "_supports_logits_to_keep"):
        return False
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = inspect.signature(owner.forward).parameters
    if not {"input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache"} <= set(parameters):
        return False
    layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _is_sharded(model: Any) -> bool:
    """Whether its weights lie on several processes, whose passes `generate` keeps in step."""
    return any(hasattr(part, "ds_id") or hasattr(part, "device_mesh") for part in model.parameters())


def _agrees(model: Any, prompt: list[int], make: Make) -> bool:
    """Two rows, one of them padded, after a common beginning: prompts and steps against a pass over each row."""
    import torch

    while len(prompt) < SHARED_PREFIX + _LONG + _STEPS:
        prompt = prompt + prompt[::-1] + [0]
    start = prompt[:SHARED_PREFIX]
    rest = prompt[SHARED_PREFIX : SHARED_PREFIX + _LONG + _STEPS]
    rows = [start + rest[: _SHORT + _STEPS], start + rest[::-1]]
    with torch.no_grad():
        with grouped_attention(model):
            batch = make(model, [row[:-_STEPS] for row in rows], _STEPS)
            own_BV = batch.begin()
            for step in range(-_STEPS, 0):
                own_BV = batch.step(torch.tensor([row[step] for row in rows], device=input_device(model)))
        whole_BV = torch.stack([_last_logits(model, row) for row in rows])
        alone_BV = torch.stack([_last_logits(model, row[-1:]) for row in rows])
    deviation_B = (own_BV.float() - whole_BV).abs().mean(-1)
    return bool((deviation_B <= _DEVIATION * (alone_BV - whole_BV).abs().mean(-1)).all())


def _last_logits(model: Any, ids: list[int]) -> torch.Tensor:
    import torch

    ids_1T = torch.tensor([ids], device=input_device(model))
    logits_V: torch.Tensor = model(input_ids=ids_1T, use_cache=False).logits[0, -1]
    return logits_V.float()
