"""Models that are tiny and fast, but real."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

SMALL_VOCABULARY = 8_192


def cut_tokenizer(source: Path, directory: Path, tokens: int) -> None:
    """The first `tokens` of SmolLM2's tokenizer: real text in a few more tokens, and far fewer logits.

    Tokens are in the order of their merges, so the first ones are a tokenizer too.
    """
    directory.mkdir(parents=True, exist_ok=True)
    described = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    model = described["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < tokens}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    (directory / "tokenizer.json").write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(source / name, directory / name)


def tiny_llama(vocab_size: int = 49_152, **values: Any) -> Any:
    """The config of a two-layer Llama, by default with as many tokens as SmolLM2 has; `values` are added."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **values,
    )


def save_untied(tied: Path, folder: Path, seed: int) -> Path:
    """A tiny model like `tied`, with random weights of its own and an output layer that is not its embedding."""
    import torch
    from transformers import LlamaForCausalLM

    shutil.copytree(tied, folder)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = tiny_llama(SMALL_VOCABULARY, max_position_embeddings=2048, tie_word_embeddings=False, **ends)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder
