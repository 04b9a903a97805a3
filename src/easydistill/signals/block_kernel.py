"""The Triton kernel of `block_statistics`; importing it needs Triton, which comes with PyTorch for GPUs.

A program computes `BLOCKS` blocks of one row: it reads each logit once, and adds in a fixed order, so that equal logits
give equal bits.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from easydistill.signals.block_statistics import BLOCK, BlockStatistics

BLOCKS = 32


# Triton would evaluate other annotations of the arguments.
@triton.jit
def _statistics_kernel(  # type: ignore[no-untyped-def]
    logits,
    row_stride,
    maxima,
    sums,
    moments,
    blocks,
    scale,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    block_B = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    exists_B = block_B < blocks
    at_BC = block_B[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    z_BC = (
        tl.load(logits + row * row_stride + at_BC, mask=exists_B[:, None], other=float("-inf")).to(tl.float32) * scale
    )
    max_B = tl.max(z_BC, 1)
    # In a block without real tokens −inf − (−inf) would be NaN.
    lower_BC = z_BC - tl.where(max_B == float("-inf"), 0.0, max_B)[:, None]
    exp_BC = tl.exp(lower_BC)
    to = row * blocks + block_B
    tl.store(maxima + to, max_B, mask=exists_B)
    tl.store(sums + to, tl.sum(exp_BC, 1), mask=exists_B)
    # 0 · −∞ would be NaN.
    tl.store(moments + to, tl.sum(tl.where(exp_BC == 0.0, 0.0, exp_BC * lower_BC), 1), mask=exists_B)


def fused_statistics(logits_NV: Tensor, scale: float) -> BlockStatistics:
    """`block_statistics` in one pass."""
    rows, vocabulary = logits_NV.shape
    assert vocabulary % BLOCK == 0 and logits_NV.stride(1) == 1
    blocks = vocabulary // BLOCK
    found = [torch.empty((rows, blocks), dtype=torch.float32, device=logits_NV.device) for _ in range(3)]
    if rows:
        grid = (rows, triton.cdiv(blocks, BLOCKS))
        # Without fused multiplication and addition, so that a block's maximum minus itself is zero at any scale.
        _statistics_kernel[grid](
            logits_NV,
            logits_NV.stride(0),
            *found,
            blocks,
            scale,
            BLOCKS=BLOCKS,
            BLOCK=BLOCK,
            enable_fp_fusion=False,
        )
    return BlockStatistics(*found)
