"""Drawing the next token of each row, with a random stream of the row's own.

A row's answer must not depend on its neighbours, so every row has its own stream and uses one uniform number per
token: the token at which the cumulative distribution exceeds it. The distribution is inverted in two steps, first over
blocks of tokens and then inside the chosen block: a cumulative sum over a whole vocabulary takes longer than a layer of
a small model.

Shapes: B rows, V vocabulary, K chosen entries, N entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from easydistill.models.prefix_sum import prefix_sum

if TYPE_CHECKING:
    import torch

BLOCK = 256
"""Entries of a distribution that are summed before it is searched."""
NUCLEUS_TRIED = 512
"""Tokens that are sorted first for nucleus sampling; rarely is a nucleus larger."""


@dataclass(frozen=True)
class DrawRule:
    """What all rows of a batch draw by.

    Args:
        kind: whether all rows take the most probable token, none does, or some do (those of temperature 0).
        top_p: draw from the smallest set of tokens with this much probability.
        top_k: draw from this many most probable tokens.
    """

    kind: Literal["greedy", "drawn", "mixed"]
    top_p: float | None = None
    top_k: int | None = None


def draw(
    logits_BV: torch.Tensor, uniform_B1: torch.Tensor, temperature_B1: torch.Tensor, rule: DrawRule
) -> torch.Tensor:
    """One token id (B) per row.

    Args:
        uniform_B1: a number from [0, 1) per row; ignored for rows of temperature 0.
    """
    import torch

    if rule.kind == "greedy":
        return _most_probable(logits_BV)
    if rule.kind == "mixed":
        greedy_B1 = temperature_B1 == 0
        drawn_B = _drawn(logits_BV, uniform_B1, temperature_B1.masked_fill(greedy_B1, 1.0), rule)
        return torch.where(greedy_B1[:, 0], _most_probable(logits_BV), drawn_B)
    return _drawn(logits_BV, uniform_B1, temperature_B1, rule)


def _most_probable(logits_BV: torch.Tensor) -> torch.Tensor:
    # A CPU takes four times as long to compare smaller numbers.
    return (logits_BV.float() if logits_BV.device.type == "cpu" and logits_BV.itemsize < 4 else logits_BV).argmax(-1)


def _drawn(
    logits_BV: torch.Tensor, uniform_B1: torch.Tensor, temperature_B1: torch.Tensor, rule: DrawRule
) -> torch.Tensor:
    scaled_BV = logits_BV.float() / temperature_B1
    if rule.top_k is None and (rule.top_p is None or rule.top_p >= 1.0):
        return invert_cdf(scaled_BV.softmax(-1), uniform_B1)
    if rule.top_k is None:
        probs_BK, ids_BK = _nucleus_candidates(scaled_BV.softmax(-1), rule.top_p or 1.0)
    else:
        top_BK, ids_BK = scaled_BV.topk(min(rule.top_k, scaled_BV.shape[-1]), dim=-1)
        probs_BK = top_BK.softmax(-1)
    if rule.top_p is not None:
        before_BK = prefix_sum(probs_BK) - probs_BK
        probs_BK = probs_BK.masked_fill(before_BK >= rule.top_p, 0.0)
    return ids_BK.gather(-1, invert_cdf(probs_BK, uniform_B1)[:, None]).squeeze(-1)


def _nucleus_candidates(probs_BV: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The most probable tokens in descending order, at least those of every row's nucleus: probabilities and ids."""
    vocabulary = probs_BV.shape[-1]
    # An accelerator sorts fast, and to look at the sums would make it wait.
    if probs_BV.device.type == "cpu" and vocabulary > NUCLEUS_TRIED:
        probs_BK, ids_BK = probs_BV.topk(NUCLEUS_TRIED, dim=-1)
        if bool((probs_BK.sum(-1) > top_p + 1e-6).all()):
            return probs_BK, ids_BK
    probs_BV, ids_BV = probs_BV.sort(dim=-1, descending=True)
    return probs_BV, ids_BV


def invert_cdf(weights_BV: torch.Tensor, uniform_B1: torch.Tensor) -> torch.Tensor:
    """Index (B) of the first entry at which the cumulative weight exceeds `uniform` times the total.

    An entry of weight zero is never returned, unless all are.
    """
    import torch

    exact = torch.float32 if weights_BV.device.type == "mps" else torch.float64
    uniform_B1 = uniform_B1.to(exact)
    width = weights_BV.shape[-1]
    if width <= BLOCK:
        return _find(weights_BV.to(exact), uniform_B1)[0].squeeze(1)
    whole = width // BLOCK * BLOCK
    sums_BN = weights_BV[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1)
    if whole < width:
        sums_BN = torch.cat([sums_BN, weights_BV[:, whole:].sum(-1, keepdim=True)], dim=-1)
    block_B1, share_B1 = _find(sums_BN.to(exact), uniform_B1)
    ids_BK = block_B1 * BLOCK + torch.arange(BLOCK, device=weights_BV.device)
    inside_BK = weights_BV.gather(1, ids_BK.clamp(max=width - 1)).masked_fill(ids_BK >= width, 0.0)
    place_B1, _ = _find(inside_BK.to(exact), share_B1)
    # Without any finite weight the place may be behind the last entry.
    return (block_B1 * BLOCK + place_B1).clamp(max=width - 1).squeeze(1)


def _find(weights_BN: torch.Tensor, uniform_B1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first entry at which the cumulative weight exceeds `uniform` times the total, and the share of it before."""
    import torch

    # Rounding must not put the target at the very end: after the last entry there may be others of weight zero.
    below_one = 1.0 - 16 * torch.finfo(weights_BN.dtype).eps
    cumulative_BN = prefix_sum(weights_BN)
    target_B1 = uniform_B1.clamp(max=below_one) * cumulative_BN[:, -1:]
    at_B1 = torch.searchsorted(cumulative_BN, target_B1, right=True).clamp(max=weights_BN.shape[-1] - 1)
    weight_B1 = weights_BN.gather(1, at_B1)
    before_B1 = cumulative_BN.gather(1, at_B1) - weight_B1
    return at_B1, ((target_B1 - before_B1) / weight_B1).clamp(0.0, below_one)


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
        self._temperatures = [float(value) for value in temperature]
        assert len(self._temperatures) == len(seeds)
        greedy = {value == 0 for value in self._temperatures}
        kind: Literal["greedy", "drawn", "mixed"] = "drawn"
        if True in greedy:
            kind = "mixed" if False in greedy else "greedy"
        self.rule = DrawRule(kind, top_p, top_k)

    def temperatures(self) -> torch.Tensor:
        """(B, 1), on the CPU."""
        import torch

        return torch.tensor(self._temperatures, dtype=torch.float32, device="cpu")[:, None]

    def uniforms(self, count: int) -> torch.Tensor:
        """The next `count` numbers of each row's stream: (B, count) in float64, on the CPU."""
        import torch

        if self.rule.kind == "greedy":
            return torch.zeros(len(self._streams), count, dtype=torch.float64, device="cpu")
        drawn = [[stream.random() for _ in range(count)] for stream in self._streams]
        return torch.tensor(drawn, dtype=torch.float64, device="cpu")

    def choose(self, logits_BV: torch.Tensor) -> torch.Tensor:
        """One token id (B) per row, drawn with the next number of its stream."""
        import torch

        on = logits_BV.device
        uniform_B1 = self.uniforms(1).to(on, torch.float32 if on.type == "mps" else None)
        return draw(logits_BV, uniform_B1, self.temperatures().to(on), self.rule)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The transformers logits processor: leaves only the drawn token."""
        import torch

        chosen_B1 = self.choose(scores)[:, None]
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen_B1, 0.0)


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
