"""Rounding to llama.cpp's types Q4_K and Q6_K, which the package gguf reads but does not write.

A super-block is 256 weights of a row. Q4_K has 8 blocks of 32, w = d·s·q − e·m with 4-bit q and 6-bit s and m; Q6_K has
16 blocks of 16, w = d·s·(q − 32) with 6-bit q and 8-bit s. d and e are float16, one for each super-block. Scales are
searched: for each of some first guesses the q are rounded, the scale (and offset) that then fits best follows by
weighted least squares, and the guess with the smallest weighted error wins. Large weights weigh more.

Shapes: S super-blocks, B blocks in each, W weights in a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

SUPER = 256
_AT_ONCE = 2048
"""Super-blocks that are searched at once: they fit a processor's cache."""
_GUESSES_4 = np.linspace(-1.0, 1.0, 21, dtype=np.float32)
"""What is added to 15, the largest q, in the first guess of the inverse scale."""
_GUESSES_6 = np.linspace(-1.0, 1.0, 15, dtype=np.float32)


def q4_k(weight_RD: Floats) -> Bytes:
    """Rows of weights as Q4_K, [R, D / 256 × 144]."""
    return _by_parts(weight_RD, _q4_k)


def q6_k(weight_RD: Floats) -> Bytes:
    """Rows of weights as Q6_K, [R, D / 256 × 210]."""
    return _by_parts(weight_RD, _q6_k)


def _by_parts(weight_RD: Floats, pack: Callable[[Floats], Bytes]) -> Bytes:
    blocks_SW = np.ascontiguousarray(weight_RD, np.float32).reshape(-1, SUPER)
    parts = [pack(blocks_SW[start : start + _AT_ONCE]) for start in range(0, len(blocks_SW), _AT_ONCE)]
    return np.concatenate(parts).reshape(*weight_RD.shape[:-1], -1)


def _importance(weight_SBW: Floats) -> Floats:
    """How much an error at each weight counts."""
    size: Floats = np.abs(weight_SBW)
    mean: Floats = np.sqrt(np.mean(weight_SBW**2, axis=-1, keepdims=True))
    return size + mean + np.float32(1e-20)


def _over(numerator: Any, denominator: Any) -> Floats:
    """The quotient, 0 where the denominator is."""
    result: Floats = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)
    return result


def _q4_k(weight_SW: Floats) -> Bytes:
    weight_SBW = weight_SW.reshape(-1, 8, 32)
    scale_SB, offset_SB = _scales_and_offsets(weight_SBW)
    d_S1, s_SB = _rounded(scale_SB, 63)
    e_S1, m_SB = _rounded(offset_SB, 63)
    step_SB1 = (d_S1 * s_SB)[..., None]
    q_SBW = np.rint(_over(weight_SBW + (e_S1 * m_SB)[..., None], np.broadcast_to(step_SB1, weight_SBW.shape)))
    q_SBW = np.clip(q_SBW, 0, 15).astype(np.uint8)
    pairs = q_SBW.reshape(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    return np.concatenate([_f16(d_S1), _f16(e_S1), _six_bits(s_SB.astype(np.uint8), m_SB.astype(np.uint8)), nibbles], 1)


def _scales_and_offsets(weight_SBW: Floats) -> tuple[Floats, Floats]:
    """The scales and offsets [S, B], both 0 or more, with the smallest error."""
    count_SBW = _importance(weight_SBW)
    low_SB = np.minimum(weight_SBW.min(-1), 0)
    span_SB = weight_SBW.max(-1) - low_SB
    total_SB, sum_SB = count_SBW.sum(-1), (count_SBW * weight_SBW).sum(-1)
    best_SB = np.full_like(span_SB, np.inf)
    scale_SB, offset_SB = np.zeros_like(span_SB), np.zeros_like(span_SB)
    for more in _GUESSES_4:
        inverse_SB1 = _over(np.full_like(span_SB, 15 + more), span_SB)[..., None]
        q_SBW = np.clip(np.rint((weight_SBW - low_SB[..., None]) * inverse_SB1), 0, 15)
        counted_SBW = count_SBW * q_SBW
        q1_SB, q2_SB, wq_SB = counted_SBW.sum(-1), (counted_SBW * q_SBW).sum(-1), (counted_SBW * weight_SBW).sum(-1)
        own_SB = _over(total_SB * wq_SB - sum_SB * q1_SB, total_SB * q2_SB - q1_SB**2)
        off_SB = (own_SB * q1_SB - sum_SB) / total_SB
        # Without an offset below 0, which cannot be written, the scale alone is fitted.
        own_SB = np.maximum(np.where(off_SB < 0, _over(wq_SB, q2_SB), own_SB), 0)
        off_SB = np.maximum(off_SB, 0)
        error_SBW = own_SB[..., None] * q_SBW - off_SB[..., None] - weight_SBW
        error_SB = (count_SBW * error_SBW**2).sum(-1)
        better_SB = error_SB < best_SB
        best_SB = np.where(better_SB, error_SB, best_SB)
        scale_SB, offset_SB = np.where(better_SB, own_SB, scale_SB), np.where(better_SB, off_SB, offset_SB)
    return scale_SB, offset_SB


def _rounded(value_SB: Floats, most: int) -> tuple[Floats, Floats]:
    """(unit [S, 1] as float16 holds it, whole multiples [S, B] of it), the largest of which is about `most` in size."""
    at_S1 = np.abs(value_SB).argmax(-1, keepdims=True)
    unit_S1 = (np.take_along_axis(value_SB, at_S1, -1) / np.float32(most)).astype(np.float16).astype(np.float32)
    whole_SB = np.rint(_over(value_SB, np.broadcast_to(unit_S1, value_SB.shape)))
    return unit_S1, np.clip(whole_SB, -most, most)


def _f16(value_S1: Floats) -> Bytes:
    """Two bytes each, [S, 2]."""
    return value_S1.astype(np.float16).view(np.uint8)


def _six_bits(s_SB: Bytes, m_SB: Bytes) -> Bytes:
    """Eight scales and eight offsets of 6 bits as 12 bytes: the upper bits of the last four stand with the first."""
    first_s = (s_SB[:, :4] & 63) | (s_SB[:, 4:] >> 4) << 6
    first_m = (m_SB[:, :4] & 63) | (m_SB[:, 4:] >> 4) << 6
    return np.concatenate([first_s, first_m, (s_SB[:, 4:] & 15) | (m_SB[:, 4:] & 15) << 4], axis=1)


def _q6_k(weight_SW: Floats) -> Bytes:
    weight_SBW = weight_SW.reshape(-1, 16, 16)
    d_S1, s_SB = _rounded(_scales(weight_SBW), 127)
    step_SB1 = (d_S1 * s_SB)[..., None]
    q_SBW = np.rint(_over(weight_SBW, np.broadcast_to(step_SB1, weight_SBW.shape)))
    q_SW = (np.clip(q_SBW, -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low, high = q_SW & 15, q_SW >> 4
    low_bytes = np.concatenate([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], -1)
    high_bytes = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    rest = s_SB.astype(np.int8).view(np.uint8), _f16(d_S1)
    return np.concatenate([low_bytes.reshape(-1, 128), high_bytes.reshape(-1, 64), *rest], axis=1)


def _scales(weight_SBW: Floats) -> Floats:
    """The scales [S, B], of either sign, with the smallest error: the largest weight may be at −32."""
    count_SBW = _importance(weight_SBW)
    at_SB1 = np.abs(weight_SBW).argmax(-1, keepdims=True)
    peak_SB = np.take_along_axis(weight_SBW, at_SB1, -1)[..., 0]
    best_SB, scale_SB = np.full_like(peak_SB, np.inf), np.zeros_like(peak_SB)
    for more in _GUESSES_6:
        inverse_SB1 = _over(np.full_like(peak_SB, -(32 + more)), peak_SB)[..., None]
        q_SBW = np.clip(np.rint(weight_SBW * inverse_SB1), -32, 31)
        counted_SBW = count_SBW * q_SBW
        own_SB = _over((counted_SBW * weight_SBW).sum(-1), (counted_SBW * q_SBW).sum(-1))
        error_SB = (count_SBW * (own_SB[..., None] * q_SBW - weight_SBW) ** 2).sum(-1)
        better_SB = error_SB < best_SB
        best_SB, scale_SB = np.where(better_SB, error_SB, best_SB), np.where(better_SB, own_SB, scale_SB)
    return scale_SB
