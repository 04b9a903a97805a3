"""A signal that is still on its device, as one matrix of 32-bit words, so that one copy brings it to the host.

A row holds, one after the other: K ids and K log-probabilities of the head, D ids and D counts of draws, the log of the
rest, the target's log-probability and the entropy.

Shapes: N rows, K head, D draws, W = 2K + 2D + 3 words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from easydistill.signals.signal import TeacherSignal


@dataclass(frozen=True)
class DeviceSignal:
    """A `TeacherSignal` on a device."""

    words_NW: Tensor
    """int32; log-probabilities are the bits of float32."""
    head: int
    places: int
    """D: places for draws."""
    draws: int
    fixed: bool

    @classmethod
    def of(
        cls,
        head_ids_NK: Tensor,
        head_logprobs_NK: Tensor,
        log_rest_N: Tensor,
        draw_ids_ND: Tensor,
        draw_counts_ND: Tensor,
        draws: int,
        fixed: bool,
        target_logprob_N: Tensor,
        entropy_N: Tensor,
    ) -> DeviceSignal:
        """The fields are those of `TeacherSignal`."""
        singles_N3 = torch.stack([log_rest_N.float(), target_logprob_N.float(), entropy_N.float()], dim=1)
        words = [
            head_ids_NK.int(),
            head_logprobs_NK.float().contiguous().view(torch.int32),
            draw_ids_ND.int(),
            draw_counts_ND.int(),
            singles_N3.view(torch.int32),
        ]
        return cls(torch.cat(words, dim=1), head_ids_NK.shape[1], draw_ids_ND.shape[1], draws, fixed)

    @classmethod
    def concatenate(cls, parts: Sequence[DeviceSignal]) -> DeviceSignal:
        """Rows of several signals with equal widths, in order."""
        return replace(parts[0], words_NW=torch.cat([part.words_NW for part in parts]))

    def to_host(self) -> TeacherSignal:
        return self.read(self.words_NW.cpu().numpy())

    def read(self, words_NW: NDArray[Any], *, trim: bool = False) -> TeacherSignal:
        """The signal whose words are on the host; nothing of it shares memory with them.

        `trim` leaves out places at the right that no row uses, but for one place of the head.
        """
        ends = np.cumsum([self.head, self.head, self.places, self.places])
        head_ids_NK, head_NK, draw_ids_ND, counts_ND, singles_N3 = np.split(words_NW, ends, axis=1)
        head_NK, singles_N3 = head_NK.view(np.float32), singles_N3.view(np.float32)
        if trim:
            head = max(1, _used(~np.isneginf(head_NK)))
            head_ids_NK, head_NK = head_ids_NK[:, :head], head_NK[:, :head]
            drawn = _used(counts_ND > 0)
            draw_ids_ND, counts_ND = draw_ids_ND[:, :drawn], counts_ND[:, :drawn]
        return TeacherSignal(
            head_ids_NK=head_ids_NK.astype(np.int64),
            head_logprobs_NK=head_NK.copy(),
            log_rest_N=singles_N3[:, 0].copy(),
            draw_ids_ND=draw_ids_ND.astype(np.int64),
            draw_counts_ND=counts_ND.astype(np.int64),
            draws=self.draws,
            fixed=self.fixed,
            target_logprob_N=singles_N3[:, 1].copy(),
            entropy_N=singles_N3[:, 2].copy(),
        )


def _used(used_NM: NDArray[np.bool_]) -> int:
    """Width that holds every used place."""
    return int(np.flatnonzero(used_NM.any(axis=0)).max(initial=-1)) + 1


def start_copy(signal: DeviceSignal) -> Callable[[], TeacherSignal]:
    """Start to copy a signal to the host; what is returned waits for it.

    Of a signal from a GPU, places at the right that no row uses are left out.
    """
    if signal.words_NW.device.type != "cuda":
        here = signal.to_host()
        return lambda: here
    host_NW = torch.empty(signal.words_NW.shape, dtype=torch.int32, pin_memory=True)
    host_NW.copy_(signal.words_NW, non_blocking=True)
    # One that blocks lets other threads run while it waits.
    copied = torch.cuda.Event(blocking=True)
    copied.record()

    def finish() -> TeacherSignal:
        copied.synchronize()
        return signal.read(host_NW.numpy(), trim=True)

    return finish
