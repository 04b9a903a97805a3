"""How fast a device multiplies matrices and moves memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from easydistill.doctor.timing import seconds_of

if TYPE_CHECKING:
    import torch

SIDE = {"cuda": 8192, "mps": 2048, "cpu": 1024}
"""Side of the square matrices that are multiplied, by device."""
COPIED = {"cuda": 2**30, "mps": 2**28, "cpu": 2**27}
"""Bytes that are copied: far more than a cache holds."""


def matrix_rate(on: torch.device, dtype: torch.dtype, budget: float) -> float:
    """FLOP/s of a product of large square matrices."""
    import torch

    side = SIDE.get(on.type, SIDE["cpu"])
    one, other = (torch.randn(side, side, device=on).to(dtype) for _ in range(2))
    out = torch.empty_like(one)
    return 2 * side**3 / seconds_of(lambda: torch.mm(one, other, out=out), budget)


def bandwidth(on: torch.device, budget: float) -> float:
    """Bytes a second of a copy in the device's memory, read and written bytes counted."""
    import torch

    count = COPIED.get(on.type, COPIED["cpu"])
    source = torch.ones(count // 4, device=on)
    target = torch.empty_like(source)
    return 2 * count / seconds_of(lambda: target.copy_(source), budget)
