"""The shape of models that are fast, and real in every interface."""

from __future__ import annotations

from typing import Any


def tiny_llama(**values: Any) -> Any:
    """The config of a two-layer Llama with as many tokens as SmolLM2 has; `values` are added."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=49_152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **values,
    )
