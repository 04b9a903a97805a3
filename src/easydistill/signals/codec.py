"""The numbers of a signal ↔ few bits.

A log-probability takes `LOGPROB_BITS` bits, quadratically spaced, so that probable tokens, whose errors matter most,
are the most exact: lp = −F·(c/C)² for code c. Masses and the targets' log-probabilities take 16 bits, evenly spaced.
Entries follow each other without gaps; each sample starts at a full byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easydistill.signals.signal import Floats, Ints, TeacherSignal

LOGPROB_BITS = 10
LOGPROB_FLOOR = 18.0
"""Less probable tokens are stored as e^−18: fifteen of them together are below a millionth."""
WORD_FLOOR = 32.0
_TOP = (1 << LOGPROB_BITS) - 1
_WORD_TOP = (1 << 16) - 2
NOTHING = (1 << 16) - 1
"""The code of a zero mass, and of an unknown entropy."""

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint16]


def bits_for(count: int) -> int:
    """Number of bits that distinguish `count` values; at least one."""
    return max(1, (count - 1).bit_length())


def pack(values: Ints, width: int) -> Bytes:
    """Non-negative integers below 2^width, `width` bits each, the highest bit first; ends at a full byte."""
    word = np.dtype(">u4" if width <= 32 else ">u8")
    bits = np.unpackbits(values.astype(word).view(np.uint8).reshape(-1, word.itemsize), axis=1)
    return np.packbits(bits[:, 8 * word.itemsize - width :])


def unpack(data: Bytes, count: int, width: int) -> Ints:
    """The inverse of `pack`, for widths up to 57."""
    padded = np.concatenate([data, np.zeros(8, np.uint8)])
    first_bit = np.arange(count, dtype=np.int64) * width
    window = padded[(first_bit >> 3)[:, None] + np.arange(8)]
    words = np.ascontiguousarray(window).view(">u8").ravel().astype(np.uint64)
    words = (words << (first_bit & 7).astype(np.uint64)) >> np.uint64(64 - width)
    return words.astype(np.int64)


def encode_logprobs(logprobs: Floats) -> Ints:
    share = np.clip(-logprobs.astype(np.float64) / LOGPROB_FLOOR, 0.0, 1.0)
    return np.rint(np.sqrt(share) * _TOP).astype(np.int64)


def decode_logprobs(codes: Ints) -> Floats:
    return (-LOGPROB_FLOOR * (codes / _TOP) ** 2).astype(np.float32)


def encode_words(values: Floats) -> Words:
    """Numbers from −WORD_FLOOR to 0; −inf and NaN have a code of their own."""
    finite = np.isfinite(values)
    share = np.clip(-np.where(finite, values, 0.0).astype(np.float64) / WORD_FLOOR, 0.0, 1.0)
    return np.where(finite, np.rint(share * _WORD_TOP), NOTHING).astype(np.uint16)


def decode_words(codes: Words, nothing: float) -> Floats:
    values = -WORD_FLOOR * codes.astype(np.float64) / _WORD_TOP
    return np.where(codes == NOTHING, nothing, values).astype(np.float32)


@dataclass(frozen=True)
class EncodedSignal:
    """One sample's signal as it is stored."""

    head: Bytes
    head_counts: NDArray[np.unsignedinteger[Any]]
    draws: Bytes
    draw_counts: NDArray[np.unsignedinteger[Any]]
    """Different draws per row."""
    log_rest: Words
    realised: Words
    """The targets' log-probabilities, under the name that stores on disk use."""
    entropy: Words


@dataclass(frozen=True)
class Codec:
    """The encoding of one store's signals."""

    vocabulary: int
    """Token ids are below this."""
    head: int
    """Entries of every row's head; −1 if rows differ."""
    most: int
    """Most entries that a row's head has."""
    draws: int
    """Most draws per row."""
    fixed: bool = False
    """See `TeacherSignal.fixed`; such draws never repeat, so their counts are not stored."""

    @property
    def _head_width(self) -> int:
        return bits_for(self.vocabulary) + LOGPROB_BITS

    @property
    def _draw_width(self) -> int:
        return bits_for(self.vocabulary) + self._count_width

    @property
    def _count_width(self) -> int:
        return 0 if self.fixed else bits_for(self.draws)

    @property
    def _counts(self) -> type[np.unsignedinteger[Any]]:
        """Data type of a row's number of entries."""
        return np.uint8 if max(self.head, self.draws, self.most) < 256 else np.uint16

    def encode(self, signal: TeacherSignal) -> EncodedSignal:
        used_NK = np.isfinite(signal.head_logprobs_NK)
        drawn_ND = signal.draw_counts_ND > 0
        codes = encode_logprobs(signal.head_logprobs_NK[used_NK])
        entries = (signal.head_ids_NK[used_NK] << LOGPROB_BITS) | codes
        drawn = signal.draw_ids_ND[drawn_ND]
        if not self.fixed:
            drawn = (drawn << self._count_width) | (signal.draw_counts_ND[drawn_ND] - 1)
        none = np.zeros(0, self._counts)
        return EncodedSignal(
            head=pack(entries, self._head_width),
            head_counts=used_NK.sum(-1).astype(self._counts) if self.head < 0 else none,
            draws=pack(drawn, self._draw_width),
            draw_counts=drawn_ND.sum(-1).astype(self._counts) if self.draws else none,
            log_rest=encode_words(signal.log_rest_N),
            realised=encode_words(signal.target_logprob_N),
            entropy=encode_words(-signal.entropy_N) if self.draws else np.zeros(0, np.uint16),
        )

    def decode(self, stored: EncodedSignal) -> TeacherSignal:
        """The inverse of `encode`. Head and rest are normalised to sum to one, since rounding changed them."""
        rows = len(stored.log_rest)
        head_counts = stored.head_counts.astype(np.int64) if self.head < 0 else np.full(rows, self.head, np.int64)
        draw_counts = stored.draw_counts.astype(np.int64) if self.draws else np.zeros(rows, np.int64)
        entries = unpack(stored.head, int(head_counts.sum()), self._head_width)
        drawn = unpack(stored.draws, int(draw_counts.sum()), self._draw_width)
        log_rest_N = decode_words(stored.log_rest, -np.inf)
        logprobs_NK = _ragged(decode_logprobs(entries & _TOP), head_counts, np.float32(-np.inf))
        return TeacherSignal(
            head_ids_NK=_ragged(entries >> LOGPROB_BITS, head_counts, np.int64(0)),
            head_logprobs_NK=_summing_to_rest(logprobs_NK, log_rest_N),
            log_rest_N=log_rest_N,
            draw_ids_ND=_ragged(drawn >> self._count_width, draw_counts, np.int64(0)),
            draw_counts_ND=_ragged((drawn & ((1 << self._count_width) - 1)) + 1, draw_counts, np.int64(0)),
            draws=self.draws,
            fixed=self.fixed,
            target_logprob_N=decode_words(stored.realised, -np.inf),
            entropy_N=-decode_words(stored.entropy, np.nan) if self.draws else np.full(rows, np.nan, np.float32),
        )


def _ragged(values: NDArray[Any], counts: Ints, fill: Any) -> NDArray[Any]:
    """Consecutive runs of `counts` values as the rows of a matrix, padded on the right."""
    width = int(counts.max(initial=0))
    used = np.arange(width) < counts[:, None]
    matrix = np.full((len(counts), width), fill)
    matrix[used] = values
    return matrix


def _summing_to_rest(logprobs_NK: Floats, log_rest_N: Floats) -> Floats:
    if logprobs_NK.shape[1] == 0:
        return logprobs_NK
    with np.errstate(divide="ignore"):
        wanted_N = np.log1p(-np.minimum(np.exp(log_rest_N.astype(np.float64)), 1 - 1e-12))
        found_N = np.log(np.exp(logprobs_NK.astype(np.float64)).sum(-1))
    # A row has no head if no token reaches the threshold.
    moved_N = np.where(np.isneginf(found_N), 0.0, wanted_N - np.where(np.isneginf(found_N), 0.0, found_N))
    return (logprobs_NK + moved_N[:, None]).astype(np.float32)
