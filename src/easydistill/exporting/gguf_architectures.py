"""Which architectures are written as GGUF, under which names, and what of their configs the format can say.

Names are llama.cpp's. An architecture, a tensor or a setting that is not known here is refused by name: a file that
lacks it would load, and write nonsense.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from easydistill.exporting.gguf_rotation import kinds_of, problem_of

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
_SANDWICHED = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
"""Gemma's layers have norms before and after each of their two parts."""
_FUSED = {
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
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
    norms_from_one: bool = False
    """Whether the model's norms hold what is added to 1; the file holds the sum."""
    activation: str = "silu"
    """The one that llama.cpp computes."""
    full_every: int = 0
    """Which layers see all that is before them, if others see a window: the last of so many. llama.cpp knows no other
    order."""

    def tensor(self, name: str) -> str | None:
        """The name in the file of a weight of the model; None if it is not known."""
        if (match := _LAYER.fullmatch(name)) is None:
            return _OUTSIDE.get(name)
        part = self.parts.get(match[2])
        if part is None or (match[3] == "bias" and part not in self.biased):
            return None
        return f"blk.{match[1]}.{part}.{match[3]}"

    def sees_all(self, layer: int) -> bool:
        """Whether a layer sees all that is before it."""
        return self.full_every == 0 or (layer + 1) % self.full_every == 0


_GEMMA_2 = Architecture(
    "gemma2", {**_PROJECTIONS, **_SANDWICHED}, norms_from_one=True, activation="gelu_pytorch_tanh", full_every=2
)
ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama", _PROJECTIONS, interleaved=True),
    "MistralForCausalLM": Architecture("llama", _PROJECTIONS, interleaved=True),
    "Qwen2ForCausalLM": Architecture("qwen2", _PROJECTIONS, _QKV),
    "Qwen3ForCausalLM": Architecture("qwen3", {**_PROJECTIONS, **_HEAD_NORMS}),
    "Gemma2ForCausalLM": _GEMMA_2,
    "Gemma3ForCausalLM": replace(_GEMMA_2, name="gemma3", parts={**_GEMMA_2.parts, **_HEAD_NORMS}, full_every=6),
    "Phi3ForCausalLM": Architecture("phi3", _FUSED),
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
    if found := _unsaid(config, ARCHITECTURES[name]):
        return f"{name} with {found} is not written as GGUF: the file would not say so", "export it as safetensors"
    return None


def _unsaid(config: Mapping[str, Any], architecture: Architecture) -> str | None:
    """What a config sets that the file has no place for."""
    rotations = kinds_of(config)
    for settings in rotations.values():
        if problem := problem_of(settings, architecture.name):
            return problem
    if rotations.get("sliding_attention", {}).get("rope_type", "default") != "default":
        return "rotary scaling of layers with a window"
    activation = config.get("hidden_activation") or config.get("hidden_act") or architecture.activation
    if activation != architecture.activation:
        return f"hidden_act {activation!r}"
    if problem := _other_windows(config, architecture):
        return problem
    if config.get("use_bidirectional_attention"):
        return "attention to what follows"
    if architecture.name == "gemma3" and (
        config.get("final_logit_softcapping") or config.get("attn_logit_softcapping")
    ):
        return "capped logits"
    if architecture.name == "gemma2" and not (
        config.get("attn_logit_softcapping", 50.0) and config.get("final_logit_softcapping", 30.0)
    ):
        # llama.cpp divides by both, whatever they are.
        return "scores or logits that are not capped"
    scale, width = config.get("query_pre_attn_scalar", 256), config.get("head_dim", 256)
    if architecture.name.startswith("gemma") and scale != width:
        return f"scores divided by the root of {scale}, where heads have {width} numbers"
    return "a quantization_config" if config.get("quantization_config") else None


def _other_windows(config: Mapping[str, Any], architecture: Architecture) -> str | None:
    kinds = config.get("layer_types") or []
    if architecture.full_every:
        usual = [f"{'full' if architecture.sees_all(layer) else 'sliding'}_attention" for layer in range(len(kinds))]
        every = config.get("sliding_window_pattern", architecture.full_every)
        same = kinds == usual and every == architecture.full_every
        return None if same else f"windows in other layers than {architecture.name} has them"
    # Those of Mistral and Phi-3 are in the config alone.
    named = config.get("model_type") in {"mistral", "phi3"} and config.get("sliding_window") is not None
    shorter = named and config["sliding_window"] < config.get("max_position_embeddings", 0)
    return (
        "sliding-window attention"
        if set(kinds) - {"full_attention"} or config.get("use_sliding_window") or shorter
        else None
    )
