"""Leaves out the tokens of a teacher's signals that are no distribution.

A server or an engine may give a placeholder (−9999) for a log-probability, and a teacher in half precision may overflow
to NaN. Such a token gets no signal, as if an aligned teacher had none for it: it is learned from its label alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from easydistill.data.numbers import PLACEHOLDER
from easydistill.data.tokens import Bools
from easydistill.errors import DataError
from easydistill.signals.signal import TeacherSignal
from easydistill.signals.store import ScoredSample


def usable_rows(signal: TeacherSignal) -> Bools:
    """For each row of a signal, whether its log-probabilities are finite or −inf, and no placeholders."""
    values_NV = np.concatenate([signal.head_logprobs_NK, signal.log_rest_N[:, None]], axis=1)
    bad_NV = np.isnan(values_NV) | np.isposinf(values_NV) | ((values_NV <= PLACEHOLDER) & ~np.isneginf(values_NV))
    some_N = ~np.isneginf(values_NV).all(axis=1)
    found: Bools = ~bad_NV.any(axis=1) & some_N
    return found


def without_unusable(sample: ScoredSample) -> ScoredSample:
    """The sample without its unusable rows; a target's log-probability alone may be unknown (−inf)."""
    signal = sample.signal
    target_N = signal.target_logprob_N
    strange_N = np.isnan(target_N) | np.isposinf(target_N) | ((target_N <= PLACEHOLDER) & ~np.isneginf(target_N))
    if strange_N.any():
        signal = replace(signal, target_logprob_N=np.where(strange_N, np.float32(-np.inf), target_N))
    usable_N = usable_rows(signal)
    if usable_N.all():
        return replace(sample, signal=signal)
    present = sample.present.copy()
    present[np.flatnonzero(present)[~usable_N]] = False
    return replace(sample, signal=signal.only(usable_N), present=present)


def check_usable(before: Sequence[ScoredSample], after: Sequence[ScoredSample]) -> None:
    """
    Raises:
        DataError: no token has a usable signal left.
    """
    if any(len(sample.signal) for sample in before) and not any(len(sample.signal) for sample in after):
        raise DataError(
            "the teacher's probabilities are not finite, or placeholders, for every token of these rows\n"
            '    → set signals.dtype to "float32", or check the teacher\'s weights'
        )
