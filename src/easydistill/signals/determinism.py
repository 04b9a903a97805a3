"""PyTorch's switch for deterministic operations, for a few operations at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def deterministic_operations(wanted: bool) -> Iterator[None]:
    """Demand deterministic operations, or allow all; afterwards it is as before."""
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warns)
