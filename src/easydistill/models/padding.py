"""Whether a model reads the padding before a prompt, told from numbers: some classes ignore the attention mask.

Recurrent layers carry their state over from the padding unless their class masks it. Answers would then depend on the
lengths of the other prompts in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from easydistill.models.spread import given_where_it_begins, input_device

if TYPE_CHECKING:
    import torch

_TOKENS, _PADDING = 8, 5
_READ = 0.1
"""Share of the effect that padding has without any mask. A class that honours the mask shows rounding alone, which in
bfloat16 is a few per cent, and now and then more than a tenth; one whose attention does and whose recurrence does not
shows a quarter and more."""


def reads_padding(model: Any, prompt: Sequence[int]) -> bool:
    """Whether padding on the left changes the model's next token.

    Args:
        model: a causal language model, on its device.
        prompt: any prompt's token ids.
    """
    bare = list(prompt[:_TOKENS])
    # A model that reads padding does so whatever the tokens are; what rounding does differs from one try to the next.
    tries = [bare, bare[::-1], list(prompt[-_TOKENS:])]
    return bool(bare) and all(_reads_before(model, ids) for ids in tries)


def _reads_before(model: Any, bare: list[int]) -> bool:
    """Whether padding before these tokens changes the next one."""
    alone_V = _next_logits(model, bare, [1] * len(bare))
    # Any token serves as padding, but for one whose embedding is zero.
    padded = bare[-1:] * _PADDING + bare
    masked_V = _next_logits(model, padded, [0] * _PADDING + [1] * len(bare))
    unmasked_V = _next_logits(model, padded, [1] * len(padded))
    effect = float((unmasked_V - alone_V).abs().mean())
    return float((masked_V - alone_V).abs().mean()) > _READ * effect > 0


def _next_logits(model: Any, ids: list[int], mask: list[int]) -> torch.Tensor:
    """Logits (V) of the token after `ids`, as `generate` computes them: positions follow the mask."""
    import torch
    from transformers import GenerationConfig

    config = GenerationConfig(
        do_sample=False, max_new_tokens=1, output_logits=True, return_dict_in_generate=True, pad_token_id=ids[0]
    )
    on = input_device(model)
    with torch.inference_mode(), given_where_it_begins():
        out = model.generate(
            torch.tensor([ids], device=on),
            attention_mask=torch.tensor([mask], device=on),
            generation_config=config,
        )
    logits_V: torch.Tensor = out.logits[0][0].float()
    return logits_V
