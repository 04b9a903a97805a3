"""A teacher's distribution over the student's ids, where the two have different tokenizers.

The map of columns is made once, on the host; applying it makes nothing wait for the device.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from easydistill.signals.alignment import Ids
from easydistill.signals.determinism import deterministic_operations


@dataclass(frozen=True)
class ColumnMap:
    """Which of a teacher's columns become which of the student's, as indices on a device.

    Shapes: T the teacher's columns, S the student's; M columns of one sort, C ids to which several of them map.
    """

    student_vocabulary: int
    alone_M: Tensor
    """Columns of the teacher that are the only ones for their id."""
    alone_ids_M: Tensor
    together_M: Tensor
    """Columns of the teacher that share an id."""
    group_M: Tensor
    """Their places in `ids_C`."""
    ids_C: Tensor
    nowhere_M: Tensor
    """Columns of the teacher without an id."""

    @classmethod
    def of(cls, teacher_to_student: Ids, columns: int, student_vocabulary: int, on: Any) -> ColumnMap:
        """
        Args:
            teacher_to_student: from `shared_vocabulary`; −1 for none. Columns beyond it (padding) have no id.
            columns: T.
            student_vocabulary: S, the number of the student model's columns.
            on: the device.
        """
        target_T = np.full(columns, -1, np.int64)
        target_T[: len(teacher_to_student)] = teacher_to_student
        mapped_T = target_T >= 0
        sources_S = np.bincount(target_T[mapped_T], minlength=student_vocabulary)
        alone_T = mapped_T & (sources_S[np.maximum(target_T, 0)] == 1)
        together_M = np.flatnonzero(mapped_T & ~alone_T)
        ids_C, group_M = np.unique(target_T[together_M], return_inverse=True)
        found = (np.flatnonzero(alone_T), target_T[alone_T], together_M, group_M, ids_C, np.flatnonzero(~mapped_T))
        return cls(student_vocabulary, *(torch.from_numpy(indices).to(on) for indices in found))

    def merge(self, logprobs_NT: Tensor) -> tuple[Tensor, Tensor]:
        """A teacher's log-probabilities over the student's ids.

        Returns (log-probabilities [N, S], −inf for ids to which nothing maps; log of the unmapped mass [N]), in float64
        for float64 inputs, else in float32. An id to which several of the teacher's tokens map gets their sum; the
        others are copied, so that no value underflows.

        Args:
            logprobs_NT: normalised over the teacher's full vocabulary.
        """
        logprobs_NT = logprobs_NT if logprobs_NT.dtype == torch.float64 else logprobs_NT.float()
        rows = len(logprobs_NT)
        merged_NS = logprobs_NT.new_full((rows, self.student_vocabulary), -torch.inf)
        merged_NS.index_copy_(1, self.alone_ids_M, logprobs_NT.index_select(1, self.alone_M))
        part_NM = logprobs_NT.index_select(1, self.together_M)
        highest_NC = logprobs_NT.new_full((rows, len(self.ids_C)), -torch.inf)
        highest_NC = highest_NC.scatter_reduce(1, self.group_M.expand(rows, -1), part_NM, "amax")
        highest_NC = highest_NC.nan_to_num(neginf=0.0)
        exp_NM = (part_NM - highest_NC.index_select(1, self.group_M)).exp()
        # A GPU adds in any order, unless it is told not to.
        with deterministic_operations(True) if exp_NM.device.type == "cuda" else contextlib.nullcontext():
            sum_NC = torch.zeros_like(highest_NC).index_add(1, self.group_M, exp_NM)
        merged_NS.index_copy_(1, self.ids_C, highest_NC + sum_NC.log())
        return merged_NS, logprobs_NT.index_select(1, self.nowhere_M).logsumexp(1)
