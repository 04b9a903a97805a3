"""Running sums of weights that are the same in every run.

torch's `cumsum` of floats is not deterministic on a GPU: a single row is summed by blocks that wait for each other in
no fixed order. Where `torch.use_deterministic_algorithms` is on, torch refuses it, and the sums are made here by
additions of whole tensors (Hillis and Steele, 1986).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 512
"""Entries that are summed together; the sums of the blocks are summed in turn."""


def prefix_sum(weights: Tensor) -> Tensor:
    """Inclusive running sums along the last dimension. [..., N] → [..., N]

    Args:
        weights: floats, none below zero.
    """
    import torch

    if weights.is_cuda and torch.are_deterministic_algorithms_enabled():
        return by_doubling(weights)
    return weights.cumsum(-1)


def by_doubling(weights: Tensor) -> Tensor:
    """`prefix_sum` without `cumsum`: it never falls, and stays as it is over weights of zero, as an exact one does."""
    import torch

    count = weights.shape[-1]
    padded = torch.nn.functional.pad(weights, (0, -count % BLOCK))
    blocks = _doubled(padded.unflatten(-1, (-1, BLOCK)))
    if blocks.shape[-2] > 1:
        ends = _doubled(blocks[..., -1])
        blocks[..., 1:, :] += ends[..., :-1, None]
    sums = blocks.flatten(-2)[..., :count]
    # Neighbours are rounded differently, so a sum may be less than the one before it by a rounding error.
    return sums.where(weights > 0, 0.0).cummax(-1).values


def _doubled(values: Tensor) -> Tensor:
    """Running sums along the last dimension: after step k each entry is the sum of the last 2^k."""
    sums, reach = values.clone(), 1
    while reach < sums.shape[-1]:
        sums[..., reach:] = sums[..., reach:] + sums[..., :-reach]
        reach *= 2
    return sums
