"""Models that read the padding before a prompt get prompts of one length together."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.tiny import tiny_llama

from easydistill.data.batches import batches_by_length

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14, 15, 16]]


def _made(kind: str) -> Any:
    import torch
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaForCausalLM,
        MambaConfig,
        MambaForCausalLM,
        RecurrentGemmaConfig,
        RecurrentGemmaForCausalLM,
    )

    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(tiny_llama(64)).eval()
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    if kind == "mamba":
        return MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2)).eval()
    config = RecurrentGemmaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        lru_width=32,
        attention_window_size=32,
    )
    return RecurrentGemmaForCausalLM(config).eval()


@pytest.mark.parametrize(("kind", "reads"), [("llama", False), ("gpt2", False), ("recurrent_gemma", True)])
def test_what_reads_padding_is_told_from_numbers(kind: str, reads: bool) -> None:
    from easydistill.models.padding import reads_padding

    assert reads_padding(_made(kind), PROMPTS[1]) is reads


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba", "recurrent_gemma"])
def test_an_answer_is_the_same_in_every_batch(kind: str) -> None:
    """Greedy answers in batches formed as teachers form them, against each prompt on its own."""
    import torch

    from easydistill.models.padding import reads_padding
    from easydistill.models.sampling import SeededSampler, generate_batch

    model = _made(kind)

    def answers(batch: list[int]) -> dict[int, list[int]]:
        sampler = SeededSampler([0] * len(batch), temperature=0.0)
        with torch.inference_mode():
            made = generate_batch(model, [PROMPTS[at] for at in batch], frozenset({1}), 6, sampler)
        return {at: answer.ids for at, answer in zip(batch, made, strict=True)}

    batches = batches_by_length([3, 6, 3], None, 10_000, 6, equal=reads_padding(model, PROMPTS[0]))
    together = {at: ids for batch in batches for at, ids in answers(batch).items()}
    assert together == {at: answers([at])[at] for at in range(3)}


def test_equal_batches_hold_one_length_each() -> None:
    assert batches_by_length([3, 6, 3, 6, 3], 2, 1000, 1, equal=True) == [[0, 2], [4], [1, 3]]
    assert batches_by_length([3, 6, 3], None, 1000, 1) == [[0, 2, 1]]


def test_rounding_is_not_taken_for_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 one try in many shows more than a tenth of the effect; what reads padding does so in every one."""
    import torch

    from easydistill.models import padding

    odd = [1, 2, 3, 4, 5, 6, 7, 8]

    def logits(model: object, ids: list[int], mask: list[int]) -> torch.Tensor:
        if len(ids) == len(odd):
            return torch.zeros(4)
        seen = [token for token, shown in zip(ids, mask, strict=True) if shown]
        return torch.full((4,), 1.0 if len(seen) > len(odd) else 0.12 if seen == odd or model == "reads" else 0.02)

    monkeypatch.setattr(padding, "_next_logits", logits)
    assert padding.reads_padding("reads", [*odd, 9, 10, 11])
    assert not padding.reads_padding("rounds", [*odd, 9, 10, 11])
