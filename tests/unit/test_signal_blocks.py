"""A GPU's form of extraction: it finds what the reference finds, with shapes that depend on no number on the device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from easydistill.models.head import Head
from easydistill.signals import block_statistics as statistics
from easydistill.signals.block_statistics import BLOCK, block_statistics, reference
from easydistill.signals.determinism import deterministic_operations
from easydistill.signals.extract import SignalShape, TeacherRows, extract, lazy_signal, rows_at_once
from easydistill.signals.signal import TeacherSignal
from easydistill.signals.unusable import usable_rows

SHAPES = {
    "top_k": SignalShape(8),
    "top_p": SignalShape(30, top_p=0.9),
    "sampled": SignalShape(0, draws=20),
    "top_k_sampled": SignalShape(5, draws=7),
    "threshold": SignalShape(40, draws=40, threshold=True),
    "threshold of two": SignalShape(2, draws=2, threshold=True),
}
ROWS, WIDTH, STEP = 70, 24, 32


def numbers(*size: int, seed: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def teacher(vocabulary: int, spread: float, dtype: torch.dtype, teachers: int = 1) -> TeacherRows:
    hidden = [numbers(ROWS, WIDTH, seed=seed).to(dtype) for seed in range(teachers)]
    heads = [Head((numbers(vocabulary, WIDTH, seed=10 + seed) * spread).to(dtype)) for seed in range(teachers)]
    return TeacherRows(hidden, heads, [float(np.log(1 / teachers))] * teachers)


def both(
    rows: TeacherRows, shape: SignalShape, vocabulary: int, temperature: float
) -> tuple[TeacherSignal, TeacherSignal]:
    """The reference's signal, and that of the form for GPUs."""
    generator = torch.Generator().manual_seed(5)
    target = torch.randint(0, vocabulary, (ROWS,), generator=generator)
    uniform = torch.rand(ROWS, generator=generator, dtype=torch.float64)
    wanted = extract(rows, target, uniform, shape, vocabulary, temperature)
    made = lazy_signal(rows, target, uniform, shape, vocabulary, temperature, STEP)
    return wanted, made.read(made.words_NW.numpy(), trim=True)


def head_of(signal: TeacherSignal, row: int) -> dict[int, float]:
    ids, logprobs = signal.head_ids_NK[row].tolist(), signal.head_logprobs_NK[row].tolist()
    return {token: value for token, value in zip(ids, logprobs, strict=True) if np.isfinite(value)}


def draws_of(signal: TeacherSignal, row: int) -> dict[int, int]:
    ids, counts = signal.draw_ids_ND[row].tolist(), signal.draw_counts_ND[row].tolist()
    return {token: count for token, count in zip(ids, counts, strict=True) if count}


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("vocabulary", "output_rows"), [(333, 340), (1000, 1024), (64, 64), (50, 50)])
@pytest.mark.parametrize("teachers", [1, 2])
@pytest.mark.parametrize("kind", SHAPES)
def test_both_forms_find_the_same(
    kind: str, teachers: int, vocabulary: int, output_rows: int, temperature: float
) -> None:
    shape, rows = SHAPES[kind], teacher(output_rows, 0.7, torch.float32, teachers)
    wanted, found = both(rows, shape, vocabulary, temperature)
    np.testing.assert_allclose(found.target_logprob_N, wanted.target_logprob_N, atol=2e-5)
    np.testing.assert_allclose(np.exp(found.log_rest_N), np.exp(wanted.log_rest_N), atol=2e-6)
    np.testing.assert_allclose(found.entropy_N, wanted.entropy_N, atol=5e-5)
    for row in range(ROWS):
        assert list(head_of(found, row)) == list(head_of(wanted, row))
        np.testing.assert_allclose(list(head_of(found, row).values()), list(head_of(wanted, row).values()), atol=2e-5)
        assert draws_of(found, row) == draws_of(wanted, row)


@pytest.mark.parametrize("kind", SHAPES)
def test_logits_in_bfloat16_are_taken_as_they_are(kind: str) -> None:
    """Equal logits may come in another order, and a draw at their border may be of the other; all else is equal."""
    wanted, found = both(teacher(1024, 0.7, torch.bfloat16), SHAPES[kind], 1000, 1.0)
    np.testing.assert_allclose(found.target_logprob_N, wanted.target_logprob_N, atol=2e-5)
    np.testing.assert_allclose(np.exp(found.log_rest_N), np.exp(wanted.log_rest_N), atol=2e-6)
    for row in range(ROWS):
        values = sorted(head_of(found, row).values())
        np.testing.assert_allclose(values, sorted(head_of(wanted, row).values()), atol=2e-5)
    same = [draws_of(found, row) == draws_of(wanted, row) for row in range(ROWS)]
    assert kind == "top_k_sampled" or np.mean(same) > 0.9


class LogitsThemselves(Head):
    """An output layer for hidden states that are logits: a product of −inf and 0 would be NaN."""

    def logits(self, hidden_ND: torch.Tensor, out_NV: torch.Tensor | None = None) -> torch.Tensor:
        return hidden_ND.clone()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("kind", SHAPES)
def test_rows_that_are_no_distribution_are_unusable(kind: str, value: float) -> None:
    """The pass over the logits may see the NaN of a row in one block alone."""
    whole = numbers(4, 130, seed=3)
    whole[1] = value
    whole[2, 70] = value
    rows = TeacherRows([whole], [LogitsThemselves(torch.eye(130))], [0.0])
    made = lazy_signal(rows, torch.zeros(4, dtype=torch.long), torch.zeros(4), SHAPES[kind], 130, 1.0, 4)
    impossible_token = value == -np.inf
    assert usable_rows(made.to_host()).tolist() == [True, False, impossible_token, True]


@pytest.mark.parametrize("kind", SHAPES)
def test_no_shape_depends_on_a_number_on_the_device(kind: str) -> None:
    """Tensors without values: to read one, or a shape that depends on one, is an error."""
    rows = TeacherRows(
        [torch.empty(ROWS, WIDTH, dtype=torch.bfloat16, device="meta")],
        [Head(torch.empty(1024, WIDTH, dtype=torch.bfloat16, device="meta"))],
        [0.0],
    )
    none = torch.empty(ROWS, dtype=torch.int64, device="meta")
    made = lazy_signal(rows, none, none.double(), SHAPES[kind], 1000, 2.0, STEP)
    assert made.words_NW.shape == (ROWS, 2 * SHAPES[kind].head + 2 * SHAPES[kind].draws + 3)


def test_no_rows_give_no_signal() -> None:
    rows = TeacherRows([torch.zeros(0, WIDTH)], [Head(torch.zeros(100, WIDTH))], [0.0])
    none = torch.zeros(0, dtype=torch.int64)
    made = lazy_signal(rows, none, none.double(), SHAPES["threshold"], 100, 1.0, STEP)
    assert len(made.read(made.words_NW.numpy(), trim=True)) == 0


def test_more_is_read_at_once_where_less_is_kept() -> None:
    rows = teacher(1024, 1.0, torch.bfloat16)
    fits = [rows_at_once(rows, SignalShape(n, draws=n, threshold=True), 1000, 1 << 22) for n in (1, 16, 128, 1024)]
    assert fits == sorted(fits, reverse=True) and fits[0] > 10 * fits[-1] and fits[-1] >= 1


def test_statistics_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = numbers(37, 3 * BLOCK, seed=0)
    whole = reference(logits, 0.5)
    monkeypatch.setattr(statistics, "PART_BYTES", 4 * 3 * BLOCK * 5)
    for found, wanted in zip(block_statistics(logits, 0.5), whole, strict=True):
        assert torch.equal(found, wanted)


INTERPRETED = """
import torch
from easydistill.signals.block_kernel import fused_statistics
from easydistill.signals.block_statistics import reference

for dtype in (torch.float32, torch.bfloat16, torch.float16):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(6, 64 * 37, generator=generator) * 4).to(dtype)
    logits[:, 100:260], logits[2], logits[4, 700] = -torch.inf, -torch.inf, torch.inf
    # A slice of wider rows, whose width is no multiple of the blocks of a program.
    for view in (logits, logits[:, : 64 * 35]):
        for scale in (1.0, 0.5):
            for found, wanted in zip(fused_statistics(view, scale), reference(view, scale), strict=True):
                torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5, equal_nan=True)
    logits[3, 5] = torch.nan
    assert fused_statistics(logits, 1.0).sum_NB[3].isnan().nonzero().tolist() == [[0]]
assert len(fused_statistics(logits[:0], 1.0).max_NB) == 0
print("equal")
"""


def test_the_kernel_computes_the_references_statistics() -> None:
    """By Triton's interpreter, which must be chosen before Triton is imported."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "equal\n"


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from easydistill.signals.block_kernel import BLOCK, BLOCKS, _statistics_kernel

types = ["*{dtype}", "i32", "*fp32", "*fp32", "*fp32", "i32", "fp32", "constexpr", "constexpr"]
signature = dict(zip(_statistics_kernel.arg_names, types, strict=True))
source = ASTSource(_statistics_kernel, signature, constexprs={{"BLOCKS": BLOCKS, "BLOCK": BLOCK}})
made = triton.compile(source, target=GPUTarget("cuda", {capability}, 32), options={{"enable_fp_fusion": False}})
assert made.asm["cubin"]
print("compiled")
"""


@pytest.mark.parametrize(("dtype", "capability"), [("bf16", 90), ("fp16", 75), ("fp32", 80)])
def test_the_kernel_compiles_for_gpus(tmp_path: Path, dtype: str, capability: int) -> None:
    """Down to the machine's code, which needs no GPU: the interpreter accepts what the compiler does not."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILED.format(dtype=dtype, capability=capability)],
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "compiled\n"


def test_the_switch_for_deterministic_operations_is_put_back() -> None:
    def now() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    before = now()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with deterministic_operations(False):
            assert now() == (False, False)
        assert now() == (True, True)
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
