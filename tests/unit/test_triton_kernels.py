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

from easydistill.errors import ConfigError
from easydistill.kernels import check, devices, head_pass
from easydistill.kernels.devices import SWITCH, rows_of_raw_products, uses_triton
from easydistill.kernels.linear_cross_entropy import linear_cross_entropy
from easydistill.models.head import Head

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton has no release for this platform")

CPU = torch.device("cpu")
MEANT_FOR_TORCH = (
    # Hundreds of losses; `test_value_and_gradients_equal_the_plain_loss` says the same.
    "tests/unit/test_linear_cross_entropy.py::test_gradients_by_finite_differences",
    # Its spy watches PyTorch's softmax.
    "tests/unit/test_linear_cross_entropy.py::test_nothing_as_large_as_all_logits_is_allocated",
)


@pytest.mark.parametrize(
    "tests",
    [
        ["unit/test_linear_cross_entropy.py"],
        ["unit/test_linear_distillation.py"],
        [
            "support/interpreted_cases.py",
            "integration/test_on_policy_kd.py::test_scores_are_the_models_own_whatever_the_batch_and_the_slices",
            "integration/test_on_policy_kd.py::test_slices_do_not_change_the_gradient",
        ],
    ],
    ids=["cross_entropy", "distillation", "others"],
)
def test_interpreted_kernels_pass_the_tests_of_the_reference(tests):
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "tests.support.interpreted"]
    command += ["-p", "no:cacheprovider", *(f"--deselect={name}" for name in MEANT_FOR_TORCH)]
    command += [f"tests/{name}" for name in tests]
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
    with pytest.raises(ConfigError, match="the tensors are on the cpu"):
        uses_triton(torch.zeros(1))
    monkeypatch.setenv(SWITCH, "cuda")
    with pytest.raises(ConfigError, match="set it to torch, triton or auto"):
        uses_triton(torch.zeros(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [0, 3, 11])
def test_products_that_are_added_to_the_gradient_as_a_gpu_adds_them(rows, dtype, monkeypatch):
    """Only the addition itself is CUDA's: it is done here by what its documentation says."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(rows, 8, generator=generator).to(dtype).requires_grad_()
    weight_VD = torch.randn(50, 8, generator=generator).requires_grad_()
    target_N = torch.randint(50, (rows,), generator=generator)

    def gradients() -> tuple[torch.Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            loss = linear_cross_entropy(hidden_ND, Head(weight_VD), target_N, 4 * 50 * 4)
        return torch.autograd.grad(loss, [hidden_ND, weight_VD])

    expected = gradients()
    added = []

    def addmm(into, left, right, out_dtype, *, beta, out):
        assert out is into and left.dtype == right.dtype == torch.bfloat16 and out_dtype == into.dtype == torch.float32
        added.append(beta)
        product = left.float() @ right.float()
        return out.copy_(product if beta == 0 else into * beta + product)

    monkeypatch.setattr(head_pass, "adds_products_in_float32", lambda device, dtype: True)
    monkeypatch.setattr(torch, "addmm", addmm)
    # What was in the memory before must not matter.
    monkeypatch.setattr(torch, "empty_like", lambda of, **kind: torch.full_like(of, torch.nan, **kind))
    found = gradients()
    assert added == {0: [], 3: [0.0], 11: [0.0, 1.0, 1.0]}[rows]
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("capability", "error", "expected", "told"),
    [
        ((9, 0), 0.004, True, ""),
        ((7, 5), 0.004, False, ""),
        ((9, 0), 0.5, False, "are wrong by 0.5"),
        ((9, 0), float("nan"), False, "are wrong by nan"),
        ((9, 0), RuntimeError("Failed to find C compiler"), False, "Failed to find C compiler"),
    ],
)
def test_a_gpu_where_the_kernels_fail_has_pytorchs(capability, error, expected, told, monkeypatch, caplog):
    def largest_error(device: torch.device) -> float:
        if isinstance(error, Exception):
            raise error
        return error

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(check, "largest_error", largest_error)
    assert devices._works_on.__wrapped__(torch.device("cuda", 0)) is expected
    assert told in caplog.text
    assert bool(caplog.text) is bool(told)
