"""From a teacher's hidden states to signals, without ever holding the logits of all rows.

What is kept of a slice of logits is found in blocks of the vocabulary (`blocks.py`). Draws are systematic (one uniform
number u per row; the j-th of n draws inverts the cumulative distribution at (j + u)/n): as unbiased as independent
draws, but less noisy.

On a GPU nothing waits for the device: every shape is known before, and `start_extracting` returns while it computes.

Shapes: N rows, V vocabulary, W padded vocabulary, K head, D draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from easydistill.models.head import Head, rows_per_chunk
from easydistill.models.prefix_sum import prefix_sum
from easydistill.signals.block_statistics import BLOCK
from easydistill.signals.blocks import Blocks, DenseBlocks, LazyBlocks, above, draw, log_rest, remove, top
from easydistill.signals.codec import Codec
from easydistill.signals.config import (
    SampledSignals,
    SignalsConfig,
    ThresholdSignals,
    TopKSampledSignals,
    TopKSignals,
    TopPSignals,
)
from easydistill.signals.signal import TeacherSignal, concatenate
from easydistill.signals.transfer import DeviceSignal, start_copy

PRODUCT_BYTES = 64 << 20
"""Size of a product of float32 logits on a CPU."""
SLICE_BYTES = 8 << 20
"""Size of a slice of a product, whose exponentials stay in a CPU's cache."""
GPU_SHARE = 64
"""A slice and what is computed from it takes about one part in so many of a GPU's memory, which depends on the kind of
card alone: what is free would change the sizes of matrix products, and with them the last bits of signals."""
GPU_MOST_BYTES = 1 << 30
GATHERED_BYTES = 32
"""Bytes per token of a block that is read for a head or a draw: its logit, exponential, running sum and places."""


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

    def __len__(self) -> int:
        return len(self.hidden_ND[0])

    @property
    def device(self) -> torch.device:
        return self.hidden_ND[0].device

    def slices(self, vocabulary: int) -> Iterator[tuple[slice, Tensor]]:
        """(the rows, their logits [n, vocabulary] in float32 or float64; for a mixture, its log-probabilities).

        Matrix products need many rows at a time. Later steps go over their slice several times, which on a CPU is
        three times as fast if the slice is small. There is at least one slice, which may be empty.
        """
        on_cpu = self.device.type == "cpu"
        budget = PRODUCT_BYTES if on_cpu else slice_budget(self.device) // 4
        step = rows_per_chunk(max(len(head.weight_VD) for head in self.heads), budget)
        small = rows_per_chunk(vocabulary, SLICE_BYTES) if on_cpu else step
        for start in range(0, max(1, len(self)), step):
            products = [logits_NV[:, :vocabulary] for logits_NV in self._products(start, start + step)]
            for at in range(0, max(1, len(products[0])), small):
                part = [logits_NV[at : at + small] for logits_NV in products]
                yield slice(start + at, start + at + len(part[0])), self._mixed(part)

    def padded_logits(self, part: slice, vocabulary: int) -> Tensor:
        """The logits of some rows [n, W] in the dtype of the matrix product; they may be changed.

        W is a multiple of `BLOCK`, and logits of padding are −inf.
        """
        width = -(-vocabulary // BLOCK) * BLOCK
        products = self._products(part.start, part.stop)
        if len(products) > 1:
            logits_NV = self._mixed([logits_NV[:, :vocabulary] for logits_NV in products])
        else:
            logits_NV = products[0][:, :width]
            logits_NV[:, vocabulary:] = -torch.inf
        missing = width - logits_NV.shape[1]
        return torch.nn.functional.pad(logits_NV, (0, missing), value=-torch.inf) if missing else logits_NV

    def _products(self, start: int, stop: int) -> list[Tensor]:
        return [head.logits(hidden_ND[start:stop]) for hidden_ND, head in zip(self.hidden_ND, self.heads, strict=True)]

    def _mixed(self, products: Sequence[Tensor]) -> Tensor:
        # The output layers of teachers that are spread over devices may be on different ones.
        first, *others = (_exact(logits_NV.to(products[0].device)) for logits_NV in products)
        if not others:
            return first
        mixed = first.log_softmax(-1) + self.log_weights[0]
        for logits_NV, weight in zip(others, self.log_weights[1:], strict=True):
            mixed = torch.logaddexp(mixed, logits_NV.log_softmax(-1) + weight)
        return mixed


def _exact(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def slice_budget(on: torch.device) -> int:
    """Bytes for a slice and what is computed from it, on a device that is not a CPU."""
    if on.type != "cuda":
        return 4 * PRODUCT_BYTES
    return min(GPU_MOST_BYTES, torch.cuda.get_device_properties(on).total_memory // GPU_SHARE)


def rows_at_once(rows: TeacherRows, shape: SignalShape, vocabulary: int, budget: int) -> int:
    """How many rows of `padded_logits` fit into a byte budget, with what is computed from them; at least one."""
    widest = max(vocabulary, *(len(head.weight_VD) for head in rows.heads))
    mixed = 4 * (len(rows.heads) + 1) * widest if len(rows.heads) > 1 else 0
    product = rows.hidden_ND[0].element_size() * widest
    gathered = max(shape.head, shape.draws) * BLOCK * GATHERED_BYTES
    return max(1, budget // (product + mixed + gathered))


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
    return start_extracting(rows, target_N, uniform_N, shape, vocabulary, temperature)()


def start_extracting(
    rows: TeacherRows,
    target_N: Tensor,
    uniform_N: Tensor,
    shape: SignalShape,
    vocabulary: int,
    temperature: float = 1.0,
) -> Callable[[], TeacherSignal]:
    """`extract` that on a GPU returns at once; what it returns waits for the signals, and may run in another thread."""
    if rows.device.type != "cuda":
        found = concatenate(
            [
                signal_of_logits(logits_NV, target_N[part], uniform_N[part], shape, temperature)
                for part, logits_NV in rows.slices(vocabulary)
            ]
        )
        return lambda: found
    step = rows_at_once(rows, shape, vocabulary, slice_budget(rows.device))
    return start_copy(lazy_signal(rows, target_N, uniform_N, shape, vocabulary, temperature, step))


def lazy_signal(
    rows: TeacherRows,
    target_N: Tensor,
    uniform_N: Tensor,
    shape: SignalShape,
    vocabulary: int,
    temperature: float,
    step: int,
) -> DeviceSignal:
    """`extract` by at most `step` rows at a time, without a shape that depends on a number on the device."""
    count = len(rows)
    slices = max(1, math.ceil(count / step))
    # Equal ones: a product of few rows takes as long as one of many.
    ends = [count * number // slices for number in range(slices + 1)]
    return DeviceSignal.concatenate(
        [
            _lazy_slice(rows, slice(start, stop), target_N, uniform_N, shape, vocabulary, temperature)
            for start, stop in itertools.pairwise(ends)
        ]
    )


def _lazy_slice(
    rows: TeacherRows,
    part: slice,
    target_N: Tensor,
    uniform_N: Tensor,
    shape: SignalShape,
    vocabulary: int,
    temperature: float,
) -> DeviceSignal:
    logits_NW = rows.padded_logits(part, vocabulary)
    target_logit_N = logits_NW.gather(1, target_N[part, None])[:, 0].float()
    blocks = LazyBlocks(logits_NW, 1.0 / temperature)
    log_total_N = blocks.log_total_N if temperature == 1.0 else LazyBlocks(logits_NW).log_total_N
    return _signal_of_blocks(blocks, target_logit_N - log_total_N, uniform_N[part], shape)


def signal_of_logits(
    logits_NV: Tensor, target_N: Tensor, uniform_N: Tensor, shape: SignalShape, temperature: float = 1.0
) -> TeacherSignal:
    """The signal of a slice of logits (float32 or float64, over the real vocabulary)."""
    target_logprob_N = logits_NV.gather(1, target_N[:, None])[:, 0]
    if temperature != 1.0:
        target_logprob_N = target_logprob_N - logits_NV.logsumexp(-1)
        logits_NV = logits_NV / temperature
    blocks = DenseBlocks(logits_NV)
    if temperature == 1.0:
        target_logprob_N = target_logprob_N - blocks.log_total_N
    return _signal_of_blocks(blocks, target_logprob_N, uniform_N, shape).to_host()


def _signal_of_blocks(blocks: Blocks, target_logprob_N: Tensor, uniform_N: Tensor, shape: SignalShape) -> DeviceSignal:
    entropy_N = blocks.entropy() if shape.draws else torch.full_like(target_logprob_N, torch.nan)
    if shape.threshold:
        head_ids_NK, head_NK, used_NK = above(blocks, shape.draws)
    else:
        head_ids_NK, head_NK = top(blocks, shape.head)
        used_NK = _until(head_NK.exp(), shape.top_p)
    remove(blocks, head_ids_NK, used_NK)
    draw_ids_ND, counts_ND = draw(blocks, shape.draws, uniform_N, of_everything=shape.threshold)
    return DeviceSignal.of(
        head_ids_NK=head_ids_NK.masked_fill(~used_NK, 0),
        head_logprobs_NK=head_NK.masked_fill(~used_NK, -torch.inf),
        log_rest_N=log_rest(blocks),
        draw_ids_ND=draw_ids_ND,
        draw_counts_ND=counts_ND,
        draws=shape.draws,
        fixed=shape.threshold,
        target_logprob_N=target_logprob_N,
        entropy_N=entropy_N,
    )


def _until(probs_NK: Tensor, top_p: float) -> Tensor:
    """True for the entries of the smallest leading set with mass `top_p`; for all if `top_p` is 1."""
    if top_p >= 1.0:
        return torch.ones_like(probs_NK, dtype=torch.bool)
    before_NK = prefix_sum(probs_NK) - probs_NK
    return before_NK < top_p
