"""Tiny random models of many architectures."""

from __future__ import annotations

from typing import Any

TOKENS = 64
_COMMON: dict[str, Any] = {
    "vocab_size": TOKENS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4}
_MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
_SSM: dict[str, Any] = {"num_heads": 8, "n_groups": 1, "state_size": 8}
_EXPERTS: dict[str, Any] = {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHAPES: dict[str, dict[str, Any]] = {
    "bloom": {"n_layer": 2, "n_head": 4, "max_position_embeddings": None},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "gemma2": {"head_dim": 8},
    "gpt2": {**_GPT, "n_positions": 128},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4},
    "gptj": {**_GPT, "rotary_dim": 4, "n_positions": 128},
    "granitemoehybrid": {
        **_MAMBA,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 64,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"head_dim": 8, "attention_chunk_size": 64, "num_local_experts": 2, "intermediate_size_mlp": 64},
    "mamba2": {**_SSM, "head_dim": 8, "expand": 2, "max_position_embeddings": None},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi3": {"pad_token_id": 0},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": _EXPERTS,
    "rwkv": {"attention_hidden_size": 32},
}
"""What each architecture needs beside `_COMMON` to be tiny; others need nothing."""


def tiny_model(model_type: str, seed: int = 0, **values: Any) -> Any:
    """A random causal language model of an architecture, in eval mode."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    wanted = {**_COMMON, **SHAPES.get(model_type, {}), **values}
    if "n_positions" in wanted:
        del wanted["max_position_embeddings"]
    config = AutoConfig.for_model(model_type, **{name: value for name, value in wanted.items() if value is not None})
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(config, name, None) is not None:
            setattr(config, name, 0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()
