"""What the device decides: Triton's kernels or PyTorch's, the size of slices, how products are added up.

The environment variable `EASYDISTILL_KERNELS` overrides the first choice: `torch`, or `triton`, which also runs on CPU
tensors under Triton's interpreter (`TRITON_INTERPRET=1`).
"""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from easydistill.errors import ConfigError, ConfigIssue

LOGGER = logging.getLogger(__name__)
SWITCH = "EASYDISTILL_KERNELS"
CAPABILITY = (8, 0)
"""The oldest GPUs on which Triton's kernels are used."""
RAW_CHUNK_BYTES = 512 << 20
"""Of raw products on a GPU: few slices and large matrix products, in half the memory of the rest of a pass."""
SHARE_OF_MEMORY = 32
"""On a GPU with little memory, a slice is at most this part of it."""
ROW_TILE = 128
"""Slices have a multiple of this many rows, as the tiles of matrix products have."""


def uses_triton(tensor: Tensor) -> bool:
    """Whether Triton's kernels run where a tensor is.

    Raises:
        ConfigError: they are asked for where they cannot run, or the switch has another value than it knows.
    """
    wanted = os.environ.get(SWITCH, "auto")
    if wanted not in ("auto", "torch", "triton"):
        raise ConfigError(_issue(f"{wanted!r} is none of the kernels", "set it to torch, triton or auto"))
    if wanted == "torch" or (wanted == "auto" and tensor.device.type != "cuda"):
        return False
    if wanted == "triton":
        if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            problem = f"the tensors are on the {tensor.device.type}, where Triton does not run"
            raise ConfigError(_issue(problem, "unset it, or set TRITON_INTERPRET=1 to interpret the kernels"))
        return True
    return _works_on(tensor.device)


def _issue(problem: str, hint: str) -> ConfigIssue:
    return ConfigIssue("the environment", SWITCH, problem, hint)


@cache
def _works_on(device: torch.device) -> bool:
    if torch.cuda.get_device_capability(device) < CAPABILITY or find_spec("triton") is None:
        return False
    try:
        from easydistill.kernels.check import largest_error

        error = largest_error(device)
    except Exception as problem:
        # Triton compiles with the machine's own C compiler and driver, whose failures have no common type.
        LOGGER.warning("Triton's kernels do not run on this GPU, so slower ones are used: %s", problem)
        return False
    if not error < 1e-2:
        LOGGER.warning("Triton's kernels are wrong by %g on this GPU, so slower ones are used", error)
        return False
    return True


def rows_of_raw_products(rows: int, row_bytes: int, chunk_bytes: int | None, device: torch.device) -> int:
    """Rows of a slice of raw products: as few slices as the budget allows, of about equal size."""
    if chunk_bytes is None:
        chunk_bytes = RAW_CHUNK_BYTES
        if device.type == "cuda":
            chunk_bytes = min(chunk_bytes, torch.cuda.get_device_properties(device).total_memory // SHARE_OF_MEMORY)
    most = max(1, chunk_bytes // row_bytes)
    slices = -(-max(1, rows) // most)
    even = -(-max(1, rows) // slices)
    tiled = -(-even // ROW_TILE) * ROW_TILE
    return tiled if tiled <= most else even


@cache
def adds_products_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product of small numbers can be added to a float32 matrix by the product itself (PyTorch 2.8 and later,
    on CUDA)."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    ones = torch.ones(16, 16, device=device, dtype=dtype)
    into = torch.ones(16, 16, device=device)
    try:
        torch.addmm(into, ones, ones, torch.float32, out=into)
    except (TypeError, NotImplementedError, RuntimeError):
        return False
    return bool((into == 17).all())
