"""The end of a causal language model: hidden states, and the output layer that turns them into logits.

With the two separate, logits can be computed for a slice of rows at a time; those of a whole batch would be the
largest tensor of a training step.

Shapes: N rows (one per token), D hidden width, V vocabulary.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from easydistill.models.loading import is_multimodal

DEFAULT_CHUNK_BYTES = 64 << 20
GPU_CHUNK_BYTES = 256 << 20
_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
"""Names of factors of logits, in the configs of Cohere, Muse Glimmer and Falcon-H1."""
_OF_TOKENS = frozenset(
    (
        *("input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "use_cache", "labels"),
        *("output_attentions", "output_hidden_states", "return_dict", "kwargs"),
    )
)


@dataclass(frozen=True)
class Head:
    """A model's output layer: what turns hidden states into logits."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: Any) -> Head:
        """The head of a transformers causal language model, with the scaling and soft cap of its family."""
        layer = model.get_output_embeddings()
        config = model.config.get_text_config()
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(layer.weight, getattr(layer, "bias", None), _scale(config), softcap)

    def logits(self, hidden_ND: Tensor, out_NV: Tensor | None = None) -> Tensor:
        """Logits [N, V] in the dtype of `hidden_ND`; in `out_NV` if given (which takes no gradient)."""
        bias_V = None if self.bias_V is None else self.bias_V.to(hidden_ND.dtype)
        weight_VD = self.weight_VD.to(hidden_ND.dtype)
        if out_NV is None:
            logits_NV = torch.nn.functional.linear(hidden_ND, weight_VD, bias_V)
        elif bias_V is None:
            logits_NV = torch.mm(hidden_ND, weight_VD.T, out=out_NV)
        else:
            logits_NV = torch.addmm(bias_V, hidden_ND, weight_VD.T, out=out_NV)
        if self.scale != 1.0:
            logits_NV = torch.mul(logits_NV, self.scale, out=out_NV)
        if self.softcap is not None:
            logits_NV = torch.mul(torch.tanh(logits_NV / self.softcap), self.softcap, out=out_NV)
        return logits_NV


def _scale(config: Any) -> float:
    """What a family multiplies its logits with."""
    scale = 1.0
    for name in _FACTORS:
        scale *= float(getattr(config, name, None) or 1.0)
    # Granite divides by it, while HyperCLOVA X multiplies with it.
    scaling = float(getattr(config, "logits_scaling", None) or 1.0)
    return scale * scaling if config.model_type.startswith("hyperclovax") else scale / scaling


def rows_per_chunk(vocabulary: int, chunk_bytes: int | None, device: torch.device | None = None) -> int:
    """How many rows of float32 logits fit into a byte budget, or without one into what suits the device; at least one.

    Large slices keep a GPU busy; small ones stay nearer to a CPU's cache.
    """
    if chunk_bytes is None:
        chunk_bytes = GPU_CHUNK_BYTES if device is not None and device.type == "cuda" else DEFAULT_CHUNK_BYTES
    return max(1, chunk_bytes // (4 * vocabulary))


def body_of(model: Any) -> Any:
    """The part of a causal language model that ends in hidden states.

    Of a model that sees images it takes these too, as `image_inputs` names them.
    """
    if is_multimodal(getattr(model, "config", None)) and model.base_model is not model:
        # The decoder alone would take no notice of images, without a word.
        return model.base_model
    return decoder_of(model)


def decoder_of(model: Any) -> Any:
    """The part of a causal language model that reads embeddings of tokens and ends in hidden states."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    found = (decoder, model.base_model, getattr(model, "model", None))
    return next((body for body in found if body is not None and body is not model), model)


def image_inputs(model: Any) -> frozenset[str]:
    """Names of what the body of a model that sees images takes beside tokens, masks and positions; none for a model of
    text."""
    if not is_multimodal(getattr(model, "config", None)):
        return frozenset()
    return frozenset(inspect.signature(body_of(model).forward).parameters) - _OF_TOKENS
