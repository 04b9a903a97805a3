"""A slice of logits seen as blocks of `BLOCK` tokens: its most probable tokens, its entropy, and draws from it.

One pass over the vocabulary gives each block's maximum and its sum of exponentials; after that only a few blocks are
read:

- the k most probable tokens lie in the k blocks with the largest maxima;
- a draw chooses a block by the blocks' sums, then a token inside it.

There are two forms. `DenseBlocks`, the reference and the CPU's form, keeps an exponential for every token, and reads
from its results how many places are needed. `LazyBlocks`, a GPU's form, keeps the logits in their own dtype, computes
the exponentials of the blocks that it reads, and takes bounds for widths: reading a number would make the host wait for
the device.

Shapes: N rows, V vocabulary, B blocks, C tokens of a block, K places of the head, D draws, M any number of places.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from easydistill.models.prefix_sum import prefix_sum
from easydistill.models.sampling import first_above
from easydistill.signals.block_statistics import BLOCK, block_statistics


class Blocks(Protocol):
    """What both forms have, and what is computed from it."""

    max_N: Tensor
    max_NB: Tensor
    sum_NB: Tensor
    """Sums of exponentials, relative to `max_N`."""
    log_total_N: Tensor
    """Log of the sum of a row's exponentials."""
    rest_NB: Tensor
    """`sum_NB` in float64 without the tokens that `remove` removed."""

    def entropy(self) -> Tensor:
        """Entropy of each row, in nats: log Z − Σ e·z / Σ e. Before `remove`."""

    def logits_of(self, block_NM: Tensor) -> Tensor:
        """The logits of some blocks, [N, M, C]. Before `remove`."""

    def exponentials_of(self, block_NM: Tensor) -> Tensor:
        """e^(z − max) of the tokens of some blocks, [N, M, C]; zero for those that were removed."""

    def hide(self, ids_NK: Tensor, used_NK: Tensor) -> None:
        """Give the used tokens the exponential zero."""

    def places(self, wanted: Callable[[], Tensor], most: int) -> int:
        """How many places hold the largest number of a row's true entries of `wanted` [N, M], which is at most `most`;
        at least one."""


def top(blocks: Blocks, k: int) -> tuple[Tensor, Tensor]:
    """(ids, log-probabilities) of the k most probable tokens, most probable first, [N, K]."""
    if k == 0:
        empty = blocks.max_N.new_zeros((len(blocks.max_N), 0))
        return empty.long(), empty
    block_NK = blocks.max_NB.topk(min(k, blocks.max_NB.shape[1]), dim=-1).indices
    values_NK, place_NK = blocks.logits_of(block_NK).flatten(1).topk(k, dim=-1)
    return _ids(block_NK, place_NK), values_NK - blocks.log_total_N[:, None]


def above(blocks: Blocks, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, log-probabilities, whether the place is used) of tokens with probability 1/n or more, [N, K].

    There are at most n of them.
    """
    least_N1 = blocks.log_total_N[:, None] + math.log(1.0 / n)
    chosen = blocks.places(lambda: blocks.max_NB >= least_N1, min(n, blocks.max_NB.shape[1]))
    block_NK = blocks.max_NB.topk(chosen, dim=-1).indices
    inside_NM = blocks.logits_of(block_NK).flatten(1)
    width = blocks.places(lambda: inside_NM >= least_N1, min(n, inside_NM.shape[1]))
    values_NK, place_NK = inside_NM.topk(width, dim=-1)
    return _ids(block_NK, place_NK), values_NK - blocks.log_total_N[:, None], values_NK >= least_N1


def remove(blocks: Blocks, head_ids_NK: Tensor, used_NK: Tensor) -> None:
    """Remove the head's tokens; the others are the rest."""
    blocks.hide(head_ids_NK, used_NK)
    block_NK = head_ids_NK // BLOCK
    # The sums of these blocks are recomputed: subtracting would leave rounding errors. A block that is listed twice
    # gets the same sum twice, so the order of writing does not matter.
    left_NK = blocks.exponentials_of(block_NK).sum(-1)
    blocks.rest_NB = blocks.sum_NB.scatter(1, block_NK, left_NK).double()


def log_rest(blocks: Blocks) -> Tensor:
    """Log of the mass that `remove` left, [N]; −inf for none."""
    total_N = (blocks.log_total_N - blocks.max_N).double()
    return (blocks.rest_NB.sum(-1).log() - total_N).clamp_max(0.0)


def draw(blocks: Blocks, draws: int, uniform_N: Tensor, *, of_everything: bool) -> tuple[Tensor, Tensor]:
    """(ids, counts) of draws from the rest, equal ones merged, [N, D]. Count 0 is an unused place.

    `draws` are made from the rest; or, `of_everything`, from the whole mass, and those that hit the rest count.
    """
    if draws == 0:
        empty = blocks.max_NB.new_zeros((len(uniform_N), 0), dtype=torch.long)
        return empty, empty
    cumulative_NB = prefix_sum(blocks.rest_NB)
    rest_N1 = cumulative_NB[:, -1:]
    over_N1 = (blocks.log_total_N - blocks.max_N).double().exp()[:, None] if of_everything else rest_N1
    most = draws
    if of_everything:
        # The j-th draw can only hit the rest if j is below its share of the draws.
        all_ND = torch.arange(draws, device=uniform_N.device)
        most = blocks.places(lambda: all_ND < draws * (rest_N1 / over_N1).nan_to_num(), draws)
    at_ND = (torch.arange(most, device=uniform_N.device) + uniform_N[:, None].double()) / draws
    target_ND = at_ND * over_N1
    missed_ND = target_ND >= rest_N1
    target_ND = target_ND.minimum(rest_N1)
    block_ND = first_above(cumulative_NB, target_ND, blocks.rest_NB)
    before_ND = (cumulative_NB - blocks.rest_NB).gather(1, block_ND)
    inside_NDC = blocks.exponentials_of(block_ND).double()
    place_ND = first_above(prefix_sum(inside_NDC), (target_ND - before_ND)[:, :, None], inside_NDC)[:, :, 0]
    drawn_ND = (block_ND * BLOCK + place_ND).masked_fill(missed_ND, -1)
    return _counted(blocks, drawn_ND, once=of_everything)


def _ids(block_NK: Tensor, place_NK: Tensor) -> Tensor:
    """Token ids of places in the tokens of some blocks that follow each other."""
    return block_NK.gather(1, place_NK // BLOCK) * BLOCK + place_NK % BLOCK


def _counted(blocks: Blocks, ids_ND: Tensor, *, once: bool) -> tuple[Tensor, Tensor]:
    """Draws (−1 for none) → (different ids, moved to the left; how often each was drawn, 0 in unused places).

    With `once`, only rounding can draw a token twice, and it counts once.
    """
    ids_ND = ids_ND.sort(-1, descending=True).values
    new_ND = torch.ones_like(ids_ND, dtype=torch.bool)
    new_ND[:, 1:] = ids_ND[:, 1:] != ids_ND[:, :-1]
    slot_ND = new_ND.cumsum(-1) - 1
    # Sums of integers, and equal ids in a slot: the order of writing does not matter.
    counts_ND = torch.zeros_like(ids_ND).scatter_add_(1, slot_ND, torch.ones_like(ids_ND))
    kept_ND = torch.full_like(ids_ND, -1).scatter_(1, slot_ND, ids_ND)
    counts_ND = counts_ND.masked_fill(kept_ND < 0, 0)
    width = blocks.places(lambda: kept_ND >= 0, ids_ND.shape[1])
    kept_ND, counts_ND = kept_ND[:, :width].clamp_min(0), counts_ND[:, :width]
    return kept_ND, counts_ND.clamp_max(1) if once else counts_ND


def _wide(index_NM: Tensor) -> Tensor:
    return index_NM[:, :, None].expand(-1, -1, BLOCK)


class DenseBlocks:
    """Blocks with an exponential for every token.

    Args:
        logits_NV: float32 or float64, over the real vocabulary.
    """

    rest_NB: Tensor

    def __init__(self, logits_NV: Tensor) -> None:
        rows, vocabulary = logits_NV.shape
        blocks = -(-vocabulary // BLOCK)
        if vocabulary % BLOCK or not logits_NV.is_contiguous():
            padded_NV = logits_NV.new_full((rows, blocks * BLOCK), -torch.inf)
            padded_NV[:, :vocabulary] = logits_NV
            logits_NV = padded_NV
        self._logits_NBC = logits_NV.view(rows, blocks, BLOCK)
        self.max_NB = self._logits_NBC.amax(-1)
        self.max_N = self.max_NB.amax(-1)
        self._exp_NBC = (self._logits_NBC - self.max_N[:, None, None]).exp_()
        self.sum_NB = self._exp_NBC.sum(-1)
        self.log_total_N = self.max_N + self.sum_NB.double().sum(-1).log().to(logits_NV.dtype)

    def entropy(self) -> Tensor:
        exp_NV, logits_NV = self._exp_NBC.flatten(1), self._logits_NBC.flatten(1)
        sum_N = torch.linalg.vecdot(exp_NV, logits_NV)
        if bool(sum_N.isnan().any()):  # An impossible token has weight zero, but 0 · −∞ is NaN.
            sum_N = torch.linalg.vecdot(exp_NV, logits_NV.clamp_min(torch.finfo(logits_NV.dtype).min))
        return self.log_total_N - sum_N / self.sum_NB.sum(-1)

    def logits_of(self, block_NM: Tensor) -> Tensor:
        return self._logits_NBC.gather(1, _wide(block_NM))

    def exponentials_of(self, block_NM: Tensor) -> Tensor:
        return self._exp_NBC.gather(1, _wide(block_NM))

    def hide(self, ids_NK: Tensor, used_NK: Tensor) -> None:
        flat_NV = self._exp_NBC.flatten(1)
        flat_NV.scatter_(1, ids_NK, flat_NV.gather(1, ids_NK).masked_fill(used_NK, 0.0))

    def places(self, wanted: Callable[[], Tensor], most: int) -> int:
        wanted_NM = wanted()
        return max(1, int(wanted_NM.sum(-1).max())) if len(wanted_NM) else 1


class LazyBlocks:
    """Blocks of which only the logits are kept; nothing waits for the device.

    Args:
        logits_NV: of any floating dtype, a multiple of `BLOCK` wide, −inf where there is no real token. Changed by
            `hide`.
        scale: the distribution is softmax(logits · scale).
    """

    rest_NB: Tensor

    def __init__(self, logits_NV: Tensor, scale: float = 1.0) -> None:
        assert logits_NV.shape[1] % BLOCK == 0
        self._logits_NV, self._scale = logits_NV, scale
        found = block_statistics(logits_NV, scale)
        self.max_NB = found.max_NB
        self.max_N = self.max_NB.amax(-1)
        self._lower_NB = self.max_NB - self.max_N[:, None]
        self._factor_NB = self._lower_NB.exp()
        self.sum_NB = found.sum_NB * self._factor_NB
        self._moment_NB = found.moment_NB
        self._own_sum_NB = found.sum_NB
        self.log_total_N = self.max_N + self.sum_NB.double().sum(-1).log().float()

    def entropy(self) -> Tensor:
        # Σ e·(z − max): `moment_NB` is relative to the block's own maximum. A block without real tokens has no mass.
        lower_NB = self._lower_NB.masked_fill(self.max_NB.isneginf(), 0.0)
        sum_N = (self._factor_NB * (self._moment_NB + lower_NB * self._own_sum_NB)).double().sum(-1)
        return self.log_total_N - self.max_N - (sum_N / self.sum_NB.double().sum(-1)).float()

    def logits_of(self, block_NM: Tensor) -> Tensor:
        found_NMC = self._logits_NV.unflatten(1, (-1, BLOCK)).gather(1, _wide(block_NM)).float()
        return found_NMC if self._scale == 1.0 else found_NMC * self._scale

    def exponentials_of(self, block_NM: Tensor) -> Tensor:
        return (self.logits_of(block_NM) - self.max_N[:, None, None]).exp_()

    def hide(self, ids_NK: Tensor, used_NK: Tensor) -> None:
        kept_NK = self._logits_NV.gather(1, ids_NK)
        self._logits_NV.scatter_(1, ids_NK, kept_NK.masked_fill(used_NK, -torch.inf))

    def places(self, wanted: Callable[[], Tensor], most: int) -> int:
        return max(1, most)
