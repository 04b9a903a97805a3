"""A training step and a decoding step of a small model with random weights, as our stages make them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from easydistill.doctor.timing import seconds_of
from easydistill.kernels.linear_cross_entropy import linear_cross_entropy
from easydistill.models.head import Head, body_of
from easydistill.models.sampling import SeededSampler, generate_batch

FLOP_PER_PARAMETER = 6
"""Of a training step, for each token: 2 forward and 4 backward."""
PROMPT, DRAWN = 32, 24
"""Tokens of each prompt, and new ones."""


@dataclass(frozen=True)
class Shape:
    """A small model in the proportions of Qwen2.5-0.5B, and the batches that it is given."""

    width: int
    layers: int
    vocabulary: int
    rows: int
    length: int
    answers: int
    """Rows that are decoded together."""

    @classmethod
    def suiting(cls, kind: str) -> Shape:
        """Large enough to fill such a device, small enough for a check of a minute."""
        if kind == "cuda":
            return cls(width=896, layers=12, vocabulary=151_936, rows=8, length=1024, answers=64)
        return cls(width=384, layers=6, vocabulary=16_384, rows=4, length=128, answers=8)


@dataclass(frozen=True)
class Training:
    """What a training step took."""

    seconds: float
    tokens: int
    parameters: int

    @property
    def flops(self) -> float:
        """FLOP/s by the usual count, 6 a token and parameter."""
        return FLOP_PER_PARAMETER * self.parameters * self.tokens / self.seconds


@dataclass(frozen=True)
class Decoding:
    """What decoding one token of each row took."""

    seconds: float
    rows: int
    layers: int
    weight_bytes: int


def small_model(shape: Shape, on: torch.device) -> Any:
    """A causal language model with random weights, in float32."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.width * 11 // 2,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // 64,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Qwen2ForCausalLM(config).to(on)


def training(shape: Shape, on: torch.device, *, bf16: bool, budget: float) -> Training:
    """Steps of supervised fine-tuning with every token learned: float32 weights, AdamW, autocast if `bf16`."""
    model = small_model(shape, on).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=on.type in {"cuda", "cpu"})
    ids_BT = torch.randint(shape.vocabulary, (shape.rows, shape.length), device=on)
    target_N = ids_BT[:, 1:].flatten()

    def step() -> None:
        with torch.autocast(on.type, dtype=torch.bfloat16, enabled=bf16):
            hidden_BTD = body_of(model)(input_ids=ids_BT, use_cache=False).last_hidden_state
            loss = linear_cross_entropy(hidden_BTD[:, :-1].flatten(0, 1), Head.of(model), target_N)
        (loss / len(target_N)).backward()
        optimiser.step()
        optimiser.zero_grad()

    seconds = seconds_of(step, budget)
    return Training(seconds, ids_BT.numel(), sum(value.numel() for value in model.parameters()))


@torch.no_grad()
def decoding(shape: Shape, on: torch.device, dtype: torch.dtype, budget: float) -> Decoding:
    """Sampling with the transformers backend; the prompt's own pass is taken off by a second, shorter answer."""
    model = small_model(shape, on).to(dtype).eval()
    prompts = torch.randint(100, shape.vocabulary, (shape.answers, PROMPT)).tolist()

    def seconds(count: int) -> float:
        def answer() -> None:
            sampler = SeededSampler(range(shape.answers), temperature=1.0)
            generate_batch(model, prompts, frozenset(), count, sampler)

        return seconds_of(answer, budget / 2)

    short, long = seconds(DRAWN // 4), seconds(DRAWN)
    each = max(1e-9, (long - short) / (DRAWN - DRAWN // 4))
    return Decoding(each, shape.answers, shape.layers, sum(v.numel() * v.element_size() for v in model.parameters()))
