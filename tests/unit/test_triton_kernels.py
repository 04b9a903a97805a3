"""The GPU's kernels without a GPU: interpreted against the same tests as PyTorch's, and compiled for real cards."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from tests.conftest import ROOT
from tests.support.interpreted import ENVIRONMENT

from easydistill.errors import ModelError
from easydistill.kernels.devices import SWITCH, rows_of_raw_products, uses_triton

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton has no release for this platform")

CPU = torch.device("cpu")
MEANT_FOR_TORCH = (
    # Hundreds of losses; `test_value_and_gradients_equal_the_plain_loss` says the same.
    "tests/unit/test_linear_cross_entropy.py::test_gradients_by_finite_differences",
    # Its spy watches PyTorch's softmax.
    "tests/unit/test_linear_cross_entropy.py::test_nothing_as_large_as_all_logits_is_allocated",
)


@pytest.mark.parametrize(
    "tests", ["unit/test_linear_cross_entropy.py", "unit/test_linear_distillation.py", "support/interpreted_cases.py"]
)
def test_interpreted_kernels_pass_the_tests_of_the_reference(tests):
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "tests.support.interpreted", f"tests/{tests}"]
    command += ["-p", "no:cacheprovider", *(f"--deselect={name}" for name in MEANT_FOR_TORCH)]
    done = subprocess.run(
        command, env=os.environ | ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def compiled(kernel, capability: int, constants: dict[str, object]) -> str:
    """PTX of a kernel for bfloat16 products in rows as long as `HeadPass` makes them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from easydistill.kernels.triton_rows import OPTIONS

    of_ids, of_products = ("ids_ptr", "label_ptr"), ("products_ptr", "gradient_ptr")
    types = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name.endswith("_ptr"):
            types[name] = "*i64" if name in of_ids else "*bf16" if name in of_products else "*fp32"
        else:
            types[name] = "i32"
    aligned = [name for name in kernel.arg_names if name in ("stride", *of_products)]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes)
    options = {"num_warps": 8, **OPTIONS}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_cards_and_move_sixteen_bytes_at_once(capability, tmp_path, monkeypatch):
    """Also where the number of real tokens is odd."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from easydistill.kernels import triton_kernels, triton_rows

    shape = {"SCALE": 1.0, "CAP": 30.0, "PER_TEMPERATURE": 0.5, "HAS_BIAS": False, "PADDED": True, "bias_ptr": None}
    block = {"BLOCK": triton_rows.STATISTICS.block}
    statistics = compiled(triton_kernels.statistics, capability, {**shape, **block, "LISTED_BLOCK": 32})
    assert "ld.global.v4" in statistics
    alone = {"LABELS_ALONE": False, "label_ptr": None}
    gradient = compiled(triton_kernels.gradient, capability, {**shape, **block, **alone})
    assert "ld.global.v4" in gradient
    assert "st.global.v4" in gradient
    assert "cvt.rn.bf16" in gradient, "rounded to nearest"
    assert "st.global" in compiled(triton_kernels.overwrite, capability, {"LISTED_BLOCK": 32})


@pytest.mark.parametrize(
    ("rows", "row_bytes", "chunk_bytes", "expected"),
    [
        # 8 × 1,024 tokens, 60 % of them learned, at the vocabulary of Qwen2.5: three slices of 13 tiles.
        (4915, 2 * 151_936, None, 1664),
        (4915, 2 * 151_936, 64 << 20, 214),
        (1000, 2 * 151_936, None, 1024),
        (1, 2 * 151_936, None, 128),
        (0, 2 * 151_936, None, 128),
        (2000, 2000, 2000 * 1050, 1024),
        (2000, 2000, 2000 * 1010, 1000),
        (7, 4000, 1, 1),
    ],
)
def test_slices_of_raw_products_are_few_and_even(rows, row_bytes, chunk_bytes, expected):
    step = rows_of_raw_products(rows, row_bytes, chunk_bytes, CPU)
    assert step == expected
    assert step == 1 or step * row_bytes <= (chunk_bytes or 512 << 20)


def test_the_cpu_has_pytorchs_kernels_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)
    assert not uses_triton(torch.zeros(1))
    monkeypatch.setenv(SWITCH, "torch")
    assert not uses_triton(torch.zeros(1))


def test_a_switch_that_cannot_be_followed_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv(SWITCH, "triton")
    with pytest.raises(ModelError, match="the tensors are on the cpu"):
        uses_triton(torch.zeros(1))
    monkeypatch.setenv(SWITCH, "cuda")
    with pytest.raises(ModelError, match="set it to torch, triton or auto"):
        uses_triton(torch.zeros(1))
