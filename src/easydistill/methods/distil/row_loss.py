"""The row loss of white-box distillation: labels and stored teacher signals, in the fused kernel.

    loss_n = (1 − kd_ratio) · (−log p_S(label_n)) + kd_ratio · τ² · D(p_T, p_S)_n

Signals are read by row id as batches are made, and checked against the row's tokens. A batch's signals are in the order
of its learned tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from easydistill.contracts.loss import DistillationConfig, Outcomes
from easydistill.kernels.linear_distillation import Divergence, Objective, Targets, linear_distillation
from easydistill.losses import LOSSES
from easydistill.methods.sft.batching import TokenRow
from easydistill.methods.shared.ranks import sum_over_ranks
from easydistill.models.head import Head
from easydistill.signals.signal import concatenate, weight_arrays
from easydistill.signals.store import SignalStore

PREFIX = "signal_"


class Distillation:
    """Adds signals to batches, and computes their loss.

    Args:
        store: signals of all training rows.
        config: the divergence and its weight.
        chunk_bytes: memory for a slice of the logits; None for what suits the device.
    """

    def __init__(self, store: SignalStore, config: DistillationConfig, chunk_bytes: int | None) -> None:
        self._store = store
        self._config = config
        self._chunk_bytes = chunk_bytes
        self._sums: Tensor | None = None
        """Of cross-entropy, labels, divergence and signals, on the device until they are read."""

    def check(self, rows: Sequence[TokenRow]) -> None:
        """Check that every row has a signal for exactly its tokens.

        Raises:
            DataError: a row has none.
        """
        for row in rows:
            self._store.check(row.id, row.ids_T, row.learned, row.images)

    def collate(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """The signals of a batch's rows: in every tensor one row per learned token, in order."""
        read = [self._store.read(row.id, row.ids_T, row.learned, row.images) for row in rows]
        arrays = weight_arrays(
            concatenate([signal for signal, _ in read]), np.concatenate([present for _, present in read])
        )
        learned = [int(row.learned.sum()) for row in rows]
        arrays["labelled_N"] = np.repeat([not row.wrote_itself for row in rows], learned)
        return {f"{PREFIX}{name}": torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}

    def row_loss(self, rows_ND: Tensor, head: Head, target_N: Tensor, extra: Mapping[str, Tensor]) -> Tensor:
        """The summed loss of a micro-batch; see `compat.RowLoss`."""
        targets = Targets(
            **{name.removeprefix(PREFIX): value for name, value in extra.items() if name.startswith(PREFIX)}
        )
        assert len(targets.ids_NM) == len(target_N), "one signal per learned token"
        objective = Objective(
            divergence=_divergence(self._config, targets),
            kd_ratio=self._config.kd_ratio,
            temperature=self._config.temperature,
            tail=self._config.tail,
            by_rank=self._config.by_rank,
            vocabulary=self._store.manifest.codec.vocabulary,
        )
        loss = linear_distillation(rows_ND, head, target_N, targets, objective, self._chunk_bytes)
        sums = [loss.cross_entropy, targets.labelled_N.sum(), loss.divergence, targets.present_N.sum()]
        # Apple's GPUs have no float64.
        exact = torch.float32 if rows_ND.device.type == "mps" else torch.float64
        with torch.no_grad():
            found = torch.stack([value.to(exact) for value in sums])
            self._sums = found if self._sums is None else self._sums + found
        return loss.total

    def means(self) -> dict[str, float]:
        """Mean cross-entropy and divergence per token since the last call, for the log."""
        if self._sums is None:
            return {"cross_entropy": 0.0, "divergence": 0.0}
        cross_entropy, labels, divergence, signals = sum_over_ranks(self._sums).tolist()
        self._sums = None
        return {
            "cross_entropy": round(cross_entropy / max(1, labels), 6),
            "divergence": round(divergence / max(1, signals), 6),
        }


def _divergence(config: DistillationConfig, targets: Targets) -> Divergence:
    module: Any = LOSSES.module(config.distillation_type)
    wrote_N = ~targets.labelled_N if config.needs_student_answers else None

    def divergence(teacher_NM: Tensor, student_NM: Tensor, has_bucket: bool, rows: slice) -> Tensor:
        outcomes = Outcomes(has_bucket, None if wrote_N is None else wrote_N[rows])
        found: Tensor = module.divergence(config, teacher_NM, student_NM, outcomes)
        return found

    return divergence
