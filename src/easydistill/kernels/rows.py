"""What turns a slice of logits into log-probabilities and gradients, by the device it is on."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from easydistill.kernels.head_pass import HeadPass, HeadSlice
from easydistill.kernels.torch_rows import TorchRows


class Rows(Protocol):
    """n rows of logits; see `torch_rows.TorchRows`."""

    def __init__(
        self, head_pass: HeadPass, part: HeadSlice, temperature: float = 1.0, real: int | None = None
    ) -> None: ...

    def top(self, count: int) -> Tensor: ...

    def at(self, ids_NC: Tensor) -> tuple[Tensor, Tensor]: ...

    def propagate_labels(self, label_N1: Tensor) -> None: ...

    def propagate(self, ids_NC: Tensor, special_NC: Tensor, share_N1: Tensor, everywhere_N1: Tensor) -> None: ...


def rows_class(raw: bool) -> type[Rows]:
    """Triton's for raw products, else PyTorch's."""
    if not raw:
        return TorchRows
    # Imports Triton, which compiles for the GPU.
    from easydistill.kernels.triton_rows import TritonRows

    return TritonRows
