"""Which architectures are written as GGUF, under which names, and what of their configs the format can say.

Names are llama.cpp's. An architecture, a tensor or a setting that is not known here is refused by name: a file that
lacks it would load, and write nonsense.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_PROJECTIONS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_QKV = frozenset({"attn_q", "attn_k", "attn_v"})


@dataclass(frozen=True)
class Architecture:
    """How an architecture is written."""

    name: str
    """llama.cpp's."""
    parts: Mapping[str, str]
    """Module of a layer → its name in the file."""
    biased: frozenset[str] = frozenset()
    """Names in the file of those that may have a bias."""
    interleaved: bool = False
    """Whether llama.cpp rotates pairs of neighbouring dimensions, where transformers rotates halves of a head."""

    def tensor(self, name: str) -> str | None:
        """The name in the file of a weight of the model; None if it is not known."""
        if (match := _LAYER.fullmatch(name)) is None:
            return _OUTSIDE.get(name)
        part = self.parts.get(match[2])
        if part is None or (match[3] == "bias" and part not in self.biased):
            return None
        return f"blk.{match[1]}.{part}.{match[3]}"


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama", _PROJECTIONS, interleaved=True),
    "MistralForCausalLM": Architecture("llama", _PROJECTIONS, interleaved=True),
    "Qwen2ForCausalLM": Architecture("qwen2", _PROJECTIONS, _QKV),
    "Qwen3ForCausalLM": Architecture("qwen3", {**_PROJECTIONS, **_HEAD_NORMS}),
}


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """The one architecture that a config.json names."""
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) else None


def config_problem(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """(problem, hint) if a model of this config.json cannot be written as GGUF."""
    name = architecture_of(config)
    if name not in ARCHITECTURES:
        shown = name or "a config without an architecture"
        known = ", ".join(ARCHITECTURES)
        return f"{shown} is not written as GGUF, whose tensors are known for {known}", "export it as safetensors"
    if found := _unsaid(config):
        return f"{name} with {found} is not written as GGUF: the file would not say so", "export it as safetensors"
    return None


def _unsaid(config: Mapping[str, Any]) -> str | None:
    """What a config sets that the file has no place for."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, Mapping) else "of each layer"
    if kind != "default":
        return f"rotary scaling {kind!r}"
    if isinstance(rope, Mapping) and rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "partly rotated heads"
    if config.get("hidden_act", "silu") != "silu":
        return f"hidden_act {config['hidden_act']!r}"
    kinds = set(config.get("layer_types") or [])
    mistral = config.get("model_type") == "mistral" and config.get("sliding_window") is not None
    if kinds - {"full_attention"} or config.get("use_sliding_window") or mistral:
        return "sliding-window attention"
    return "a quantization_config" if config.get("quantization_config") else None
