"""A teacher's distributions in short: the exact probabilities of some tokens, draws from the rest, and the rest's mass.

One form serves every kind. `top_k` and `top_p` have a head and no draws; `sampled` has draws and no head, so its rest
is everything; `top_k_sampled` and `threshold` have both. Losses do not know where a signal comes from: a store, or a
loaded model.

Shapes: N rows (one per learned token; row n describes the distribution that predicts token n), K entries of the head,
D different draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TeacherSignal:
    """The signals of N tokens.

    Entries of a row are different tokens. A row's unused places hold id 0 with log-probability −inf, or count 0.
    """

    head_ids_NK: Ints
    head_logprobs_NK: Floats
    """log p_T of the head's tokens, in nats."""
    log_rest_N: Floats
    """Log of the teacher's mass outside the head; −inf if the head has everything."""
    draw_ids_ND: Ints
    draw_counts_ND: Ints
    draws: int
    """Draws per row; 0 if none were made."""
    fixed: bool
    """Whether a draw stands for 1/draws of the whole mass instead of its share of the rest (`threshold`)."""
    target_logprob_N: Floats
    """log p_T of the target token, in nats."""
    entropy_N: Floats
    """Entropy of the teacher's whole distribution, in nats; NaN if unknown."""

    @classmethod
    def without_draws(
        cls,
        ids_NK: NDArray[Any],
        logprobs_NK: NDArray[Any],
        log_rest_N: NDArray[Any],
        target_logprob_N: NDArray[Any],
    ) -> TeacherSignal:
        """A signal of a head alone; the teacher's entropy is not kept."""
        none_ND = np.zeros((len(log_rest_N), 0), np.int64)
        return cls(
            head_ids_NK=ids_NK,
            head_logprobs_NK=logprobs_NK.astype(np.float32),
            log_rest_N=log_rest_N.astype(np.float32),
            draw_ids_ND=none_ND,
            draw_counts_ND=none_ND,
            draws=0,
            fixed=False,
            target_logprob_N=target_logprob_N.astype(np.float32),
            entropy_N=np.full(len(log_rest_N), np.nan, np.float32),
        )

    def __len__(self) -> int:
        return len(self.log_rest_N)

    def rows(self, start: int, stop: int) -> TeacherSignal:
        """Rows `start` to `stop`."""
        return self._each(lambda array: array[start:stop])

    def only(self, chosen: NDArray[np.bool_]) -> TeacherSignal:
        """The chosen rows."""
        return self._each(lambda array: array[chosen])

    def _each(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> TeacherSignal:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if name not in _SCALARS}
        return TeacherSignal(**changed, draws=self.draws, fixed=self.fixed)

    def weights(self) -> tuple[Ints, Floats, Floats]:
        """The signal as one set of tokens per row: (ids [N, K+D], log weights [N, K+D], log of the remaining mass [N]).

        A drawn token has weight count / draws of the rest's mass or (`fixed`) of the whole, so that the expected
        weights are p_T; with draws no mass remains. Unused places have weight 0.
        """
        if not self.draws:
            return self.head_ids_NK, self.head_logprobs_NK, self.log_rest_N
        with np.errstate(divide="ignore"):
            share_ND = np.log(self.draw_counts_ND.astype(np.float32) / np.float32(self.draws))
        drawn_ND = share_ND if self.fixed else share_ND + self.log_rest_N[:, None]
        ids_NM = np.concatenate([self.head_ids_NK, self.draw_ids_ND], axis=1)
        logs_NM = np.concatenate([self.head_logprobs_NK, drawn_ND], axis=1)
        return ids_NM, logs_NM, np.full(len(self), -np.inf, np.float32)


def concatenate(signals: Sequence[TeacherSignal]) -> TeacherSignal:
    """Rows of several signals of one kind, in order; narrower ones are padded."""
    widths = {name: max(getattr(item, name).shape[1] for item in signals) for name in _WIDE}

    def joined(name: str) -> NDArray[Any]:
        parts = [getattr(item, name) for item in signals]
        if name in widths:
            fill = -np.inf if name == "head_logprobs_NK" else 0
            parts = [np.pad(part, ((0, 0), (0, widths[name] - part.shape[1])), constant_values=fill) for part in parts]
        return np.concatenate(parts)

    names = [item.name for item in fields(TeacherSignal) if item.name not in _SCALARS]
    return TeacherSignal(**{name: joined(name) for name in names}, draws=signals[0].draws, fixed=signals[0].fixed)


_SCALARS = ("draws", "fixed")
_WIDE = ("head_ids_NK", "head_logprobs_NK", "draw_ids_ND", "draw_counts_ND")


def weight_arrays(signal: TeacherSignal, present: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """A signal in the form that losses take: tokens, weights and the remaining mass, for each learned token.

    Args:
        signal: a row for every learned token that is present.
        present: for each learned token, whether it has a row; the others get an empty one.

    Returns:
        `ids_NM` (unused places repeat the row's first token), `logweights_NM` (−inf there), `log_rest_N`, `offset_N`
        (the teacher's Σ p·log p minus Σ w·log w, if the weights w are drawn; else 0) and `present_N`.
    """
    ids_NM, logs_NM, rest_N = signal.weights()
    # Used places first: in a row without a head, the draws follow the head's empty places.
    order_NM = np.isneginf(logs_NM).argsort(axis=1, kind="stable")
    ids_NM = np.take_along_axis(ids_NM, order_NM, axis=1)
    logs_NM = np.take_along_axis(logs_NM, order_NM, axis=1)
    unused_NM = np.isneginf(logs_NM)
    ids_NM = np.where(unused_NM, ids_NM[:, :1], ids_NM)
    offset_N = np.zeros(len(signal), np.float32)
    if signal.draws:
        finite_NM = np.where(unused_NM, 0.0, logs_NM)
        drawn_N = (np.exp(finite_NM) * finite_NM * ~unused_NM).sum(-1)
        offset_N = np.nan_to_num(-signal.entropy_N - drawn_N, nan=0.0).astype(np.float32)
    arrays: dict[str, NDArray[Any]] = {
        "ids_NM": ids_NM,
        "logweights_NM": logs_NM,
        "log_rest_N": rest_N,
        "offset_N": offset_N,
    }
    if not present.all():
        fills = {"logweights_NM": -np.inf}
        where = np.flatnonzero(present)
        arrays = {name: _spread(array, where, len(present), fills.get(name, 0.0)) for name, array in arrays.items()}
    return {**arrays, "present_N": present}


def _spread(array: NDArray[Any], where: Ints, length: int, fill: float) -> NDArray[Any]:
    wide = np.full((length, *array.shape[1:]), fill, array.dtype)
    wide[where] = array
    return wide
