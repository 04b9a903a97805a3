"""The device on which models of this machine compute, as far as plans need to know it."""

from __future__ import annotations

import importlib.util
import os
from typing import Literal

GPU = "the GPU"
"""Whose memory it is, in words."""
PROCESS = 830_000_000
"""Of a process with PyTorch, transformers and TRL, beside its model, when its first step begins (`benchmarks/plan`)."""
_PASSING = 250_000_000
"""Of a batch that is answered or scored on a CPU: slices of logits, keys and values, a layer's activations."""


def device_memory() -> tuple[int, str] | None:
    """(bytes, what has them): the first GPU, else this machine; None if they cannot be told."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory), GPU
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine"
    except (AttributeError, ValueError, OSError):
        return None


def kind_of_device() -> Literal["cpu", "gpu"]:
    """Where models on this machine compute."""
    if importlib.util.find_spec("torch") is None:
        return "cpu"
    import torch

    # Unlike a look at its memory, this does not start CUDA.
    return "gpu" if torch.cuda.is_available() else "cpu"


def answering_bytes(weights: int) -> int:
    """Of a stage in which models answer or score, with weights of so many bytes in all: on a CPU the libraries, and
    what a batch passes through, come on top."""
    return weights + (PROCESS + _PASSING if kind_of_device() == "cpu" else 0)
