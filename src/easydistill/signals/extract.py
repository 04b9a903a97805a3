"""From a teacher's hidden states to signals, without ever holding the logits of all rows.

The vocabulary is cut into blocks of `BLOCK` tokens. A pass over a slice of logits gives each block's maximum and its
sum of exponentials; after that only a few blocks are read:

- the k most probable tokens lie in the k blocks with the largest maxima;
- a draw chooses a block by the blocks' sums, then a token inside it.

Draws are systematic (one uniform number u per row; the j-th of n draws inverts the cumulative distribution at
(j + u)/n): as unbiased as independent draws, but less noisy.

Shapes: N rows, V vocabulary, B blocks, K head, D draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from easydistill.models.head import Head, rows_per_chunk
from easydistill.models.prefix_sum import prefix_sum
from easydistill.models.sampling import first_above
from easydistill.signals.codec import Codec
from easydistill.signals.config import (
    SampledSignals,
    SignalsConfig,
    ThresholdSignals,
    TopKSampledSignals,
    TopKSignals,
    TopPSignals,
)
from easydistill.signals.signal import Floats, Ints, TeacherSignal, concatenate

BLOCK = 64
PRODUCT_BYTES = 64 << 20
SLICE_BYTES = 8 << 20
"""Size of a slice of float32 logits on a CPU, counted once."""


@dataclass(frozen=True)
class SignalShape:
    """What is kept of each row."""

    head: int
    """Most entries of the head."""
    top_p: float = 1.0
    """The head ends when it has this much mass."""
    draws: int = 0
    """Most draws from the rest."""
    threshold: bool = False
    """The head is every token with probability 1/draws or more; each draw stands for 1/draws."""

    @classmethod
    def of(cls, config: SignalsConfig, vocabulary: int) -> SignalShape:
        match config:
            case ThresholdSignals():
                return cls(min(config.n, vocabulary), draws=config.n, threshold=True)
            case TopKSampledSignals():
                return cls(min(config.k, vocabulary), draws=config.draws)
            case SampledSignals():
                return cls(0, draws=config.draws)
            case TopPSignals():
                return cls(min(config.k_max, vocabulary), config.top_p)
            case TopKSignals():
                return cls(min(config.k, vocabulary))

    def codec(self, vocabulary: int) -> Codec:
        """The encoding of signals of this shape."""
        ragged = self.threshold or self.top_p < 1.0
        return Codec(vocabulary, -1 if ragged else self.head, self.head, self.draws, self.threshold)


@dataclass(frozen=True)
class TeacherRows:
    """The rows of one teacher, as hidden states and head, or of several teachers with weights."""

    hidden_ND: Sequence[Tensor]
    heads: Sequence[Head]
    log_weights: Sequence[float]

    def slices(self, vocabulary: int) -> Iterator[tuple[slice, Tensor]]:
        """(the rows, their logits [n, vocabulary] in float32 or float64; for a mixture, its log-probabilities).

        Matrix products need many rows at a time. Later steps go over their slice several times, which on a CPU is
        three times as fast if the slice is small. There is at least one slice, which may be empty.
        """
        count = len(self.hidden_ND[0])
        step = rows_per_chunk(max(len(head.weight_VD) for head in self.heads), PRODUCT_BYTES)
        on_cpu = self.hidden_ND[0].device.type == "cpu"
        small = rows_per_chunk(vocabulary, SLICE_BYTES) if on_cpu else step
        for start in range(0, max(1, count), step):
            products = [
                head.logits(hidden_ND[start : start + step])[:, :vocabulary]
                for hidden_ND, head in zip(self.hidden_ND, self.heads, strict=True)
            ]
            for at in range(0, max(1, len(products[0])), small):
                part = [logits_NV[at : at + small] for logits_NV in products]
                yield slice(start + at, start + at + len(part[0])), self._mixed(part)

    def _mixed(self, products: Sequence[Tensor]) -> Tensor:
        first, *others = (_exact(logits_NV) for logits_NV in products)
        if not others:
            return first
        mixed = first.log_softmax(-1) + self.log_weights[0]
        for logits_NV, weight in zip(others, self.log_weights[1:], strict=True):
            mixed = torch.logaddexp(mixed, logits_NV.log_softmax(-1) + weight)
        return mixed


def _exact(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def extract(
    rows: TeacherRows,
    target_N: Tensor,
    uniform_N: Tensor,
    shape: SignalShape,
    vocabulary: int,
    temperature: float = 1.0,
) -> TeacherSignal:
    """Signals of N rows.

    Args:
        rows: row n of its hidden states predicts `target_N[n]`.
        uniform_N: a number in [0, 1) per row, for its draws.
        vocabulary: token ids below this are real; the other logits are padding and left out of the softmax.
        temperature: of the head, draws and rest; the target's log-probability is always at temperature 1.
    """
    return concatenate(
        [
            signal_of_logits(logits_NV, target_N[part], uniform_N[part], shape, temperature)
            for part, logits_NV in rows.slices(vocabulary)
        ]
    )


def signal_of_logits(
    logits_NV: Tensor, target_N: Tensor, uniform_N: Tensor, shape: SignalShape, temperature: float = 1.0
) -> TeacherSignal:
    """The signal of a slice of logits (float32 or float64, over the real vocabulary)."""
    target_logprob_N = logits_NV.gather(1, target_N[:, None])[:, 0]
    if temperature != 1.0:
        target_logprob_N = target_logprob_N - logits_NV.logsumexp(-1)
        logits_NV = logits_NV / temperature
    blocks = _Blocks(logits_NV)
    if temperature == 1.0:
        target_logprob_N = target_logprob_N - blocks.log_total_N
    entropy_N = blocks.entropy() if shape.draws else torch.full_like(target_logprob_N, torch.nan)
    if shape.threshold:
        head_ids_NK, head_NK, used_NK = blocks.above(1.0 / shape.draws)
    else:
        head_ids_NK, head_NK = blocks.top(shape.head)
        used_NK = _until(head_NK.exp(), shape.top_p)
    blocks.remove(head_ids_NK, used_NK)
    draw_ids_ND, counts_ND = blocks.draw(shape.draws, uniform_N, of_everything=shape.threshold)
    return TeacherSignal(
        head_ids_NK=_ints(head_ids_NK.masked_fill(~used_NK, 0)),
        head_logprobs_NK=_floats(head_NK.masked_fill(~used_NK, -torch.inf)),
        log_rest_N=_floats(blocks.log_rest()),
        draw_ids_ND=_ints(draw_ids_ND),
        draw_counts_ND=_ints(counts_ND),
        draws=shape.draws,
        fixed=shape.threshold,
        target_logprob_N=_floats(target_logprob_N),
        entropy_N=_floats(entropy_N),
    )


def _until(probs_NK: Tensor, top_p: float) -> Tensor:
    """True for the entries of the smallest leading set with mass `top_p`; for all if `top_p` is 1."""
    if top_p >= 1.0:
        return torch.ones_like(probs_NK, dtype=torch.bool)
    before_NK = prefix_sum(probs_NK) - probs_NK
    return before_NK < top_p


def _ints(tensor: Tensor) -> Ints:
    return tensor.long().cpu().numpy()


def _floats(tensor: Tensor) -> Floats:
    array: Floats = tensor.float().cpu().numpy().astype(np.float32)
    return array


class _Blocks:
    """A slice of logits seen as blocks of `BLOCK` tokens."""

    def __init__(self, logits_NV: Tensor) -> None:
        rows, vocabulary = logits_NV.shape
        blocks = -(-vocabulary // BLOCK)
        if vocabulary % BLOCK or not logits_NV.is_contiguous():
            padded_NV = logits_NV.new_full((rows, blocks * BLOCK), -torch.inf)
            padded_NV[:, :vocabulary] = logits_NV
            logits_NV = padded_NV
        self._logits_NBC = logits_NV.view(rows, blocks, BLOCK)
        self._max_NB = self._logits_NBC.amax(-1)
        self._max_N = self._max_NB.amax(-1)
        self._exp_NBC = (self._logits_NBC - self._max_N[:, None, None]).exp_()
        self._sum_NB = self._exp_NBC.sum(-1)
        self.log_total_N = self._max_N + self._sum_NB.double().sum(-1).log().to(logits_NV.dtype)

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """(ids, log-probabilities) of the k most probable tokens, most probable first, [N, K]."""
        rows, blocks, _ = self._logits_NBC.shape
        if k == 0:
            empty = self._max_N.new_zeros((rows, 0))
            return empty.long(), empty
        block_NK = self._max_NB.topk(min(k, blocks), dim=-1).indices
        inside_NKC = self._logits_NBC.gather(1, block_NK[:, :, None].expand(-1, -1, BLOCK))
        values_NK, place_NK = inside_NKC.flatten(1).topk(k, dim=-1)
        ids_NK = block_NK.gather(1, place_NK // BLOCK) * BLOCK + place_NK % BLOCK
        return ids_NK, values_NK - self.log_total_N[:, None]

    def entropy(self) -> Tensor:
        """Entropy of each row, in nats: log Z − Σ e·z / Σ e. Before `remove`."""
        exp_NV, logits_NV = self._exp_NBC.flatten(1), self._logits_NBC.flatten(1)
        sum_N = torch.linalg.vecdot(exp_NV, logits_NV)
        if bool(sum_N.isnan().any()):  # An impossible token has weight zero, but 0 · −∞ is NaN.
            sum_N = torch.linalg.vecdot(exp_NV, logits_NV.clamp_min(torch.finfo(logits_NV.dtype).min))
        return self.log_total_N - sum_N / self._sum_NB.sum(-1)

    def remove(self, head_ids_NK: Tensor, used_NK: Tensor) -> None:
        """Remove the head's tokens; the others are the rest."""
        flat_NV = self._exp_NBC.flatten(1)
        flat_NV.scatter_(1, head_ids_NK, flat_NV.gather(1, head_ids_NK).masked_fill(used_NK, 0.0))
        block_NK = head_ids_NK // BLOCK
        # The sums of these blocks are recomputed: subtracting would leave rounding errors.
        left_NK = self._exp_NBC.gather(1, _wide(block_NK)).sum(-1)
        self._rest_NB = self._sum_NB.scatter(1, block_NK, left_NK).double()

    def log_rest(self) -> Tensor:
        """Log of the mass that `remove` left, [N]; −inf for none."""
        total_N = (self.log_total_N - self._max_N).double()
        return (self._rest_NB.sum(-1).log() - total_N).clamp_max(0.0)

    def above(self, share: float) -> tuple[Tensor, Tensor, Tensor]:
        """(ids, log-probabilities, whether the place is used) of tokens with probability `share` or more, [N, K]."""
        least_N1 = self.log_total_N[:, None] + math.log(share)
        blocks = max(1, int((self._max_NB >= least_N1).sum(-1).max()))
        block_NK = self._max_NB.topk(blocks, dim=-1).indices
        inside_NC = self._logits_NBC.gather(1, _wide(block_NK)).flatten(1)
        width = max(1, int((inside_NC >= least_N1).sum(-1).max()))
        values_NK, place_NK = inside_NC.topk(width, dim=-1)
        ids_NK = block_NK.gather(1, place_NK // BLOCK) * BLOCK + place_NK % BLOCK
        return ids_NK, values_NK - self.log_total_N[:, None], values_NK >= least_N1

    def draw(self, draws: int, uniform_N: Tensor, *, of_everything: bool) -> tuple[Tensor, Tensor]:
        """(ids, counts) of draws from the rest, equal ones merged, [N, D]. Count 0 is an unused place.

        `draws` are made from the rest; or, `of_everything`, from the whole mass, and those that hit the rest count.
        """
        if draws == 0:
            empty = self._max_NB.new_zeros((len(uniform_N), 0), dtype=torch.long)
            return empty, empty
        cumulative_NB = prefix_sum(self._rest_NB)
        rest_N1 = cumulative_NB[:, -1:]
        over_N1 = (self.log_total_N - self._max_N).double().exp()[:, None] if of_everything else rest_N1
        most = math.ceil(draws * float((rest_N1 / over_N1).nan_to_num().max())) if of_everything else draws
        at_ND = (torch.arange(max(1, most), device=uniform_N.device) + uniform_N[:, None].double()) / draws
        target_ND = at_ND * over_N1
        missed_ND = target_ND >= rest_N1
        target_ND = target_ND.minimum(rest_N1)
        block_ND = first_above(cumulative_NB, target_ND, self._rest_NB)
        before_ND = (cumulative_NB - self._rest_NB).gather(1, block_ND)
        inside_NDC = self._exp_NBC.gather(1, _wide(block_ND)).double()
        place_ND = first_above(prefix_sum(inside_NDC), (target_ND - before_ND)[:, :, None], inside_NDC)[:, :, 0]
        return _counted((block_ND * BLOCK + place_ND).masked_fill(missed_ND, -1), once=of_everything)


def _wide(index_NK: Tensor) -> Tensor:
    return index_NK[:, :, None].expand(-1, -1, BLOCK)


def _counted(ids_ND: Tensor, *, once: bool) -> tuple[Tensor, Tensor]:
    """Draws (−1 for none) → (different ids, moved to the left; how often each was drawn, 0 in unused places).

    With `once`, only rounding can draw a token twice, and it counts once.
    """
    ids_ND = ids_ND.sort(-1, descending=True).values
    new_ND = torch.ones_like(ids_ND, dtype=torch.bool)
    new_ND[:, 1:] = ids_ND[:, 1:] != ids_ND[:, :-1]
    slot_ND = new_ND.cumsum(-1) - 1
    counts_ND = torch.zeros_like(ids_ND).scatter_add_(1, slot_ND, torch.ones_like(ids_ND))
    kept_ND = torch.full_like(ids_ND, -1).scatter_(1, slot_ND, ids_ND)
    counts_ND = counts_ND.masked_fill(kept_ND < 0, 0)
    width = int((kept_ND >= 0).sum(-1).max()) if len(ids_ND) else 0
    kept_ND, counts_ND = kept_ND[:, :width].clamp_min(0), counts_ND[:, :width]
    return kept_ND, counts_ND.clamp_max(1) if once else counts_ND
