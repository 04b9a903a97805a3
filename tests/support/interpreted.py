"""A pytest plugin (`-p tests.support.interpreted`): tests of the kernels run on Triton's, under its interpreter.

For a process of its own: Triton decides when it is imported whether it interprets. An interpreted kernel takes about a
millisecond a row, so there are fewer rows; blocks are small, so that every row has several.
"""

from __future__ import annotations

import os

import pytest

ENVIRONMENT = {"TRITON_INTERPRET": "1", "EASYDISTILL_KERNELS": "triton"}
ROWS, BLOCK = 7, 16


def pytest_configure(config: pytest.Config) -> None:
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        raise pytest.UsageError(f"this plugin needs {ENVIRONMENT} in the environment")
    # NumPy warns of overflow where a GPU has infinity, as meant: in tanh, and beyond the vocabulary.
    for what in ("overflow", "invalid value", "divide by zero", "All-NaN"):
        config.addinivalue_line("filterwarnings", f"ignore:{what}:RuntimeWarning")
    from easydistill.kernels import triton_rows

    triton_rows.STATISTICS = triton_rows.GRADIENT = triton_rows.Launch(BLOCK, 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in ("ROWS", "N"):
            if hasattr(item.module, name):  # type: ignore[attr-defined]
                setattr(item.module, name, ROWS)  # type: ignore[attr-defined]
