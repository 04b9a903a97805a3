"""Generating a batch of answers with transformers, each row with its own random stream.

`generate` samples from one global stream, so a row's answer would depend on its neighbours, and `torch.multinomial`
draws an exponential for every vocabulary entry, a quarter of the time of a small model on a CPU. Here a logits
processor draws one uniform number per row and inverts the cumulative distribution; `generate` then takes the argmax.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from easydistill.models.limits import position_limit
from easydistill.models.prefix_sum import prefix_sum

if TYPE_CHECKING:
    import torch

    from easydistill.models.structured import SchemaMasks


class SeededSampler:
    """Draws the next token of each row from the row's own generator.

    Args:
        seeds: one per row.
        temperature: one for all rows, or one per row; 0 takes the most probable token.
        top_p: draw from the smallest set of tokens with this much probability.
        top_k: draw from this many most probable tokens.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        *,
        temperature: float | Sequence[float],
        top_p: float | None = None,
        top_k: int | None = None,
    ) -> None:
        import random

        self._streams = [random.Random(seed) for seed in seeds]
        if isinstance(temperature, int | float):
            temperature = [temperature] * len(seeds)
        self._temperatures = list(temperature)
        assert len(self._temperatures) == len(seeds)
        self._top_p = top_p
        self._top_k = top_k

    def choose(self, logits_BV: torch.Tensor) -> torch.Tensor:
        """One token id per row, from float32 logits."""
        import torch

        greedy = [temperature == 0 for temperature in self._temperatures]
        if all(greedy):
            return logits_BV.argmax(-1)
        if any(greedy):
            greedy_B = torch.tensor(greedy, device=logits_BV.device)
            return torch.where(greedy_B, logits_BV.argmax(-1), self._draw(logits_BV))
        return self._draw(logits_BV)

    def _draw(self, logits_BV: torch.Tensor) -> torch.Tensor:
        import torch

        uniform = torch.tensor([stream.random() for stream in self._streams], dtype=torch.float64, device="cpu")
        uniform_B1 = uniform.to(logits_BV.device, torch.float32)[:, None]
        # The draws of greedy rows are ignored.
        temperature_B1 = torch.tensor([value or 1.0 for value in self._temperatures], device=logits_BV.device)[:, None]
        scaled_BV = logits_BV.float() / temperature_B1
        if self._top_k is None and self._top_p is None:
            return _invert_cdf(scaled_BV.softmax(-1), uniform_B1)
        # Sorted only as far as needed; nucleus sampling without top_k needs everything.
        width = min(self._top_k or scaled_BV.shape[-1], scaled_BV.shape[-1])
        top_BK, ids_BK = scaled_BV.topk(width, dim=-1)
        probs_BK = top_BK.softmax(-1)
        if self._top_p is not None:
            before_BK = prefix_sum(probs_BK) - probs_BK
            probs_BK = probs_BK.masked_fill(before_BK >= self._top_p, 0.0)
        return ids_BK.gather(-1, _invert_cdf(probs_BK, uniform_B1)[:, None]).squeeze(-1)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The transformers logits processor: leaves only the drawn token."""
        import torch

        chosen_B1 = self.choose(scores)[:, None]
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen_B1, 0.0)


def _invert_cdf(probs_BV: torch.Tensor, uniform_B1: torch.Tensor) -> torch.Tensor:
    """Index of the first entry at which the cumulative probability exceeds `uniform` times the total."""
    cumulative_BV = prefix_sum(probs_BV)
    return first_above(cumulative_BV, uniform_B1 * cumulative_BV[:, -1:], probs_BV).squeeze(-1)


def first_above(cumulative: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Index of the first entry whose cumulative weight exceeds the target; never one of weight zero.

    Entries are along the last dimension: [..., V] weights and their cumulative sums, [..., D] targets and indices.
    """
    import torch

    index = torch.searchsorted(cumulative, target, right=True)
    # Rounding may put the target at the very end, after the last entry with any weight.
    places = torch.arange(1, weights.shape[-1] + 1, device=weights.device)
    last = ((weights > 0) * places).argmax(-1, keepdim=True)
    return index.minimum(last)


@dataclass(frozen=True)
class Answer:
    """Generated token ids without the end token, and whether the model ended the answer itself."""

    ids: list[int]
    ended: bool


@contextlib.contextmanager
def _own_distribution(model: Any) -> Iterator[None]:
    """Let `model` generate from its own probabilities.

    `generate` takes unset options from the model's generation config. A repetition penalty there, as in
    Qwen2.5-Instruct, or suppressed tokens would change the distribution that is sampled from.
    """
    from transformers import GenerationConfig

    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept, owner.generation_config = owner.generation_config, GenerationConfig()
    try:
        yield
    finally:
        owner.generation_config = kept


def generate_batch(
    model: Any,
    prompts: Sequence[list[int]],
    eos_ids: frozenset[int],
    max_new_tokens: int,
    sampler: SeededSampler,
    masks: SchemaMasks | None = None,
) -> list[Answer]:
    """Answer prompts together, padded on the left.

    Args:
        model: a causal language model, on its device.
        prompts: token ids of each prompt.
        eos_ids: tokens that end an answer.
        max_new_tokens: longest answer.
        sampler: one stream per prompt.
        masks: constrain answers to the schemas of prompts that have one.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    width = max(map(len, prompts))
    ends = sorted(eos_ids)
    pad = ends[0] if ends else 0
    ids_BT = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    mask_BT = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    context = position_limit(model.config)
    room = max_new_tokens if context is None else max(1, min(max_new_tokens, context - width))
    config = GenerationConfig(do_sample=False, max_new_tokens=room, eos_token_id=ends or None, pad_token_id=pad)
    with _own_distribution(model):
        out_BT = model.generate(
            ids_BT,
            attention_mask=mask_BT,
            generation_config=config,
            logits_processor=LogitsProcessorList([sampler] if masks is None else [masks, sampler]),
        )
    answers: list[Answer] = []
    for row in out_BT[:, width:].tolist():
        end = next((at for at, token in enumerate(row) if token in eos_ids), None)
        answers.append(Answer(row if end is None else row[:end], end is not None))
    return answers
