"""A pytest plugin (`-p tests.support.on_gpu`): tests of the kernels run on the GPU, on Triton's kernels.

Tensors that a test makes are on the GPU unless it says otherwise. Blocks are small, so that every row has several,
unless the environment variable `EASYDISTILL_TEST_BLOCKS` is `default`.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

BLOCKS = "EASYDISTILL_TEST_BLOCKS"
GPU = torch.device("cuda")


class GpuGenerator(torch.Generator):
    """What `torch.Generator()` makes: it has to be where the numbers are."""

    def __new__(cls, device: Any = GPU) -> Any:
        return super().__new__(cls, device=device)


def pytest_configure(config: pytest.Config) -> None:
    if not torch.cuda.is_available():
        raise pytest.UsageError("this plugin needs a GPU")
    torch.set_default_device(GPU)
    torch.Generator = GpuGenerator  # type: ignore[misc]
    from easydistill.kernels import triton_rows

    if os.environ.get(BLOCKS) != "default":
        triton_rows.STATISTICS = triton_rows.GRADIENT = triton_rows.Launch(16, 1)
