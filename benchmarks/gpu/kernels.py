"""The output layer and its loss, forward and backward, beside three bare matrix products of the same size.

The work of an SFT or distillation step on 8 × 1,024 tokens, 60 % of them learned, at the shape of Qwen2.5-0.5B: 4,915
rows × 896 → 151,936, float32 weights, bfloat16 autocast. In this order, as far as the time goes:

    errors    gradients of ours and of plain PyTorch against float64; whether two runs give the same bits
    losses    SFT and distillation by Triton's and by PyTorch's kernels, plain PyTorch, Liger where it is installed
    pieces    each kernel and product alone, by rows of a slice: where the time of a pass goes
    sweeps    bytes of a slice, blocks and warps of the kernels: what `kernels.devices` and `triton_rows` should say

    python -m benchmarks.gpu.run --parts kernels
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from easydistill.contracts.loss import Outcomes
from easydistill.kernels import devices
from easydistill.kernels.head_pass import HeadPass
from easydistill.kernels.linear_cross_entropy import linear_cross_entropy
from easydistill.kernels.linear_distillation import Objective, Targets, linear_distillation
from easydistill.losses import LOSSES
from easydistill.models.head import Head

Step = Callable[[], Any]
REPEATS, WARM_UP = 12, 3


@dataclass(frozen=True)
class Shape:
    """Rows, width and vocabulary of an output layer; ids from `real` on are padding."""

    rows: int
    width: int
    vocabulary: int
    real: int


QWEN = Shape(4915, 896, 151_936, 151_665)
FEW = Shape(192, 896, 151_936, 151_665)
"""Small enough for float64."""
TINY = Shape(40, 16, 500, 470)


class Problem:
    """Random hidden states, an output layer, labels, and a teacher's listed tokens."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape, self.device = shape, device
        generator = torch.Generator(device).manual_seed(0)
        size = {"generator": generator, "device": device}
        self.hidden_ND = torch.randn(shape.rows, shape.width, **size).requires_grad_()
        # Logits with a standard deviation of 3.
        self.weight_VD = (torch.randn(shape.vocabulary, shape.width, **size) * 3 / shape.width**0.5).requires_grad_()
        self.target_N = torch.randint(shape.real, (shape.rows,), **size)
        self._size = size

    def targets(self, listed: int, *, ragged: bool) -> Targets:
        """`listed` tokens a row with 95 % of the mass; a third of the places unused if `ragged`."""
        rows, real = self.shape.rows, self.shape.real
        first_N1 = torch.randint(real, (rows, 1), **self._size)
        ids_NM = (first_N1 + 7 * torch.arange(listed, device=self.device)) % real
        weights_NM = torch.randn(rows, listed, **self._size)
        if ragged:
            unused_NM = torch.arange(listed, device=self.device) > torch.randint(
                listed // 3, listed, (rows, 1), **self._size
            )
            weights_NM = weights_NM.masked_fill(unused_NM, -torch.inf)
            ids_NM = torch.where(unused_NM, ids_NM[:, :1], ids_NM)
        logweights_NM = weights_NM.log_softmax(-1) + torch.tensor(0.95, device=self.device).log()
        rest_N = torch.full((rows,), 0.05, device=self.device).log()
        every_N = torch.ones(rows, dtype=torch.bool, device=self.device)
        return Targets(ids_NM, logweights_NM, rest_N, torch.zeros_like(rest_N), every_N, every_N)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, [self.hidden_ND, self.weight_VD]))

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16)

    def sft(self, chunk_bytes: int | None = None) -> Step:
        def step() -> list[Tensor]:
            with self.autocast():
                loss = linear_cross_entropy(self.hidden_ND, Head(self.weight_VD), self.target_N, chunk_bytes)
            return self.gradients(loss / self.shape.rows)

        return step

    def distillation(
        self, targets: Targets, name: str = "forward_kld", temperature: float = 1.0, chunk_bytes: int | None = None
    ) -> Step:
        objective = objective_of(name, temperature, self.shape.real)

        def step() -> list[Tensor]:
            with self.autocast():
                head = Head(self.weight_VD)
                loss = linear_distillation(self.hidden_ND, head, self.target_N, targets, objective, chunk_bytes)
            return self.gradients(loss.total / self.shape.rows)

        return step

    def plain(self) -> Step:
        def step() -> list[Tensor]:
            with self.autocast():
                logits_NV = torch.nn.functional.linear(self.hidden_ND, self.weight_VD)
                loss = torch.nn.functional.cross_entropy(logits_NV.float(), self.target_N)
            return self.gradients(loss)

        return step

    def products(self) -> Step:
        """The three matrix products of forward and backward pass, in bfloat16."""
        hidden_ND, weight_VD = self.hidden_ND.detach().bfloat16(), self.weight_VD.detach().bfloat16()
        out_NV = torch.empty(self.shape.rows, self.shape.vocabulary, dtype=torch.bfloat16, device=self.device)

        def step() -> None:
            torch.mm(hidden_ND, weight_VD.T, out=out_NV)
            torch.mm(out_NV, weight_VD)
            torch.mm(out_NV.T, hidden_ND)

        return step

    def liger(self) -> Step:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        def step() -> list[Tensor]:
            with self.autocast():
                loss = liger_fused_linear_cross_entropy(self.hidden_ND, self.weight_VD, self.target_N)
            return self.gradients(loss)

        return step


def objective_of(name: str, temperature: float, real: int) -> Objective:
    """A loss at half weight, as a job has it."""
    module: Any = LOSSES.module(name)
    config = module.Config(distillation_type=name)

    def divergence(teacher_NM: Tensor, student_NM: Tensor, has_bucket: bool, rows: slice) -> Tensor:
        found: Tensor = module.divergence(config, teacher_NM, student_NM, Outcomes(has_bucket))
        return found

    return Objective(divergence, 0.5, temperature, config.tail, config.by_rank, real)


@contextlib.contextmanager
def kernels(which: str) -> Iterator[None]:
    """Run with `torch` or `triton` kernels, or those of the device (`auto`)."""
    before = os.environ.get(devices.SWITCH)
    os.environ[devices.SWITCH] = which
    try:
        yield
    finally:
        if before is None:
            del os.environ[devices.SWITCH]
        else:
            os.environ[devices.SWITCH] = before


def timed(step: Step, device: torch.device, repeats: int = REPEATS) -> dict[str, Any]:
    """Median and extremes in ms, the time to enqueue a step, and peak memory with weights and inputs, in GiB."""
    if device.type != "cuda":
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            step()
            seconds.append(1000 * (time.perf_counter() - started))
        return {
            "ms": round(statistics.median(seconds), 3),
            "min": round(min(seconds), 3),
            "max": round(max(seconds), 3),
        }
    for _ in range(WARM_UP):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    pairs, enqueued = [], []
    for _ in range(repeats):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started = time.perf_counter()
        begun.record()
        step()
        ended.record()
        enqueued.append(1000 * (time.perf_counter() - started))
        torch.cuda.synchronize()
        pairs.append(begun.elapsed_time(ended))
    return {
        "ms": round(statistics.median(pairs), 3),
        "min": round(min(pairs), 3),
        "max": round(max(pairs), 3),
        "enqueued_ms": round(statistics.median(enqueued), 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3),
    }


def attempted(step: Step, device: torch.device, repeats: int = REPEATS) -> dict[str, Any]:
    """The same, or what went wrong: one failing case must not take the others with it."""
    try:
        return timed(step, device, repeats)
    except Exception as problem:
        return {"failed": f"{type(problem).__name__}: {problem}"[:500]}
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


# --- errors -------------------------------------------------------------------------------------------------------


def errors(shape: Shape, device: torch.device) -> dict[str, Any]:
    """Relative errors of the gradients (hidden states, weight) against float64; whether a second run is the same."""
    problem = Problem(shape, device)
    targets = problem.targets(30, ragged=True)
    exact = Problem(shape, device)
    exact.hidden_ND = problem.hidden_ND.detach().double().requires_grad_()
    exact.weight_VD = problem.weight_VD.detach().double().requires_grad_()
    exact.autocast = contextlib.nullcontext  # type: ignore[method-assign]
    found: dict[str, Any] = {}
    losses: dict[str, Callable[[Problem], Step]] = {
        "sft": lambda on: on.sft(),
        "forward_kld": lambda on: on.distillation(targets),
        "forward_kld, temperature 2": lambda on: on.distillation(targets, temperature=2.0),
        "jsd": lambda on: on.distillation(targets, "jsd"),
        "adaptive_kld": lambda on: on.distillation(targets, "adaptive_kld"),
    }
    for name, loss in losses.items():
        with kernels("torch"):
            wanted = loss(exact)()
            found[name] = {"torch": _distances(loss(problem)(), wanted)}
        ours = loss(problem)()
        again = loss(problem)()
        found[name]["ours"] = _distances(ours, wanted)
        found[name]["same_bits_again"] = all(map(torch.equal, ours, again))
    found["sft"]["plain"] = _distances(problem.plain()(), Problem.sft(exact)())
    return found


def _distances(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    return [float(f"{float((a.double() - b).norm() / b.norm()):.3e}") for a, b in zip(found, wanted, strict=True)]


# --- losses -------------------------------------------------------------------------------------------------------


def losses(problem: Problem) -> dict[str, Any]:
    """Each loss's time and memory, and the bound of all."""
    threshold, top_k = problem.targets(30, ragged=True), problem.targets(64, ragged=False)
    # Made when their turn comes, so that none holds memory while another is measured.
    made: dict[str, tuple[str, Callable[[], Step]]] = {
        "three bare products": ("auto", problem.products),
        "sft": ("auto", problem.sft),
        "forward_kld, threshold": ("auto", lambda: problem.distillation(threshold)),
        "forward_kld, 64 listed": ("auto", lambda: problem.distillation(top_k)),
        "forward_kld, temperature 2": ("auto", lambda: problem.distillation(threshold, temperature=2.0)),
        "adaptive_kld": ("auto", lambda: problem.distillation(threshold, "adaptive_kld")),
        "jsd": ("auto", lambda: problem.distillation(threshold, "jsd")),
        "uld": ("auto", lambda: problem.distillation(top_k, "uld")),
        "sft, torch": ("torch", problem.sft),
        "forward_kld, torch": ("torch", lambda: problem.distillation(threshold)),
        "sft, torch, slices of 64 MiB": ("torch", lambda: problem.sft(64 << 20)),
        "sft, plain PyTorch": ("auto", problem.plain),
    }
    if find_spec("liger_kernel") is not None and problem.device.type == "cuda":
        made["sft, Liger"] = ("auto", problem.liger)
    found = {}
    for name, (which, make) in made.items():
        with kernels(which):
            found[name] = attempted(make(), problem.device)
    bound = found["three bare products"].get("ms")
    for name in ("sft", "forward_kld, threshold"):
        if bound and "ms" in found[name]:
            found[name]["of_three_products"] = round(found[name]["ms"] / bound, 3)
    return found


# --- pieces -------------------------------------------------------------------------------------------------------


def pieces(problem: Problem, rows: int) -> dict[str, Any]:
    """Each kernel and product of one slice alone, in ms."""
    from easydistill.kernels.triton_rows import TritonRows

    hidden_ND = problem.hidden_ND.detach()[:rows].bfloat16()
    head = Head(problem.weight_VD.detach())
    head_pass = HeadPass(hidden_ND, head, (True, True, False), 1 << 40, True)
    weight_VD = head_pass.head.weight_VD
    part = next(head_pass.slices())
    ids_NC = problem.targets(30, ragged=True).ids_NM[:rows]
    logits_NV, dweight_VD, buffer_VD = part.logits_NV, torch.zeros_like(head.weight_VD), torch.empty_like(weight_VD)
    one, two = TritonRows(head_pass, part, 1.0), TritonRows(head_pass, part, 2.0, problem.shape.real)
    ones_N1 = torch.ones(rows, 1, device=problem.device)

    def added() -> None:
        torch.mm(logits_NV.T, hidden_ND, out=buffer_VD)
        dweight_VD.add_(buffer_VD)

    def in_parts(parts: int) -> Step:
        """The product with the weight, its long sum cut into parts, because the result has few tiles."""
        width = problem.shape.vocabulary // parts // 64 * 64
        left_PNV = logits_NV[:, : parts * width].unflatten(1, (parts, width)).transpose(0, 1)
        right_PVD = weight_VD[: parts * width].unflatten(0, (parts, width))
        return lambda: torch.bmm(left_PNV, right_PVD, torch.float32).sum(0)

    steps: dict[str, Step] = {
        "cast of the weight": lambda: head.weight_VD.to(torch.bfloat16),
        "logits": lambda: torch.mm(hidden_ND, weight_VD.T, out=logits_NV),
        "statistics": lambda: one.at(ids_NC),
        "statistics, temperature 2": lambda: two.at(ids_NC),
        "gradient of labels": lambda: one._write_gradient(None, None, ids_NC[:, :1].contiguous()),
        "gradient, temperature 2": lambda: two._write_gradient(ones_N1, ones_N1, None),
        "hidden states": lambda: torch.mm(logits_NV, weight_VD),
        **{f"hidden states, {parts} parts": in_parts(parts) for parts in (2, 4, 8)},
        "weight, added by the product": lambda: torch.addmm(
            dweight_VD, logits_NV.T, hidden_ND, torch.float32, out=dweight_VD
        ),
        "weight, added afterwards": added,
    }
    # The gradient kernels read what they wrote: values change, the work does not.
    return {name: attempted(step, problem.device, 10).get("ms", "failed") for name, step in steps.items()}


# --- sweeps -------------------------------------------------------------------------------------------------------


def slices(problem: Problem, ends: float) -> dict[str, Any]:
    """SFT by the bytes of a slice."""
    found = {}
    for mib in (512, 768, 384, 256, 1024, 1536, 128, 64):
        if time.monotonic() > ends:
            break
        found[f"{mib} MiB"] = attempted(problem.sft(mib << 20), problem.device, 10)
    return found


def launches(problem: Problem, rows: int, ends: float) -> dict[str, Any]:
    """Each kernel by columns of a block and warps of a program, in ms; how the default is cut comes first."""
    from easydistill.kernels import triton_rows

    hidden_ND = problem.hidden_ND.detach()[:rows].bfloat16()
    head_pass = HeadPass(hidden_ND, Head(problem.weight_VD.detach()), (True, True, False), 1 << 40, True)
    part = next(head_pass.slices())
    ids_NC = problem.targets(30, ragged=True).ids_NM[:rows]
    ones_N1 = torch.ones(rows, 1, device=problem.device)
    found: dict[str, Any] = {}
    choices = [(4096, 8), (8192, 8), (2048, 4), (2048, 8), (4096, 4), (8192, 16), (4096, 16), (1024, 4), (16384, 16)]
    before = triton_rows.STATISTICS, triton_rows.GRADIENT
    for block, warps in choices:
        if time.monotonic() > ends:
            break
        triton_rows.STATISTICS = triton_rows.GRADIENT = triton_rows.Launch(block, warps)
        one, two = (triton_rows.TritonRows(head_pass, part, temperature) for temperature in (1.0, 2.0))
        steps: dict[str, Step] = {
            "statistics": lambda rows=one: rows.at(ids_NC),
            "statistics, temperature 2": lambda rows=two: rows.at(ids_NC),
            "gradient": lambda rows=one: rows._write_gradient(ones_N1, ones_N1, None),
        }
        found[f"{block} columns, {warps} warps"] = {
            name: attempted(step, problem.device, 10).get("ms", "failed") for name, step in steps.items()
        }
    triton_rows.STATISTICS, triton_rows.GRADIENT = before
    return found


def measure(budget_seconds: float, tiny: bool = False) -> dict[str, Any]:
    """All of it, as far as the time goes."""
    ends = time.monotonic() + budget_seconds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = TINY if tiny else QWEN
    found: dict[str, Any] = {"shape": vars(shape), "errors": errors(TINY if tiny else FEW, device)}
    problem = Problem(shape, device)
    found["triton"] = devices.uses_triton(problem.hidden_ND)
    found["adds_products_in_float32"] = devices.adds_products_in_float32(device, torch.bfloat16)
    found["losses"] = losses(problem)
    if not found["triton"]:
        return found
    found["pieces"] = {}
    for rows in (1664, shape.rows, 1024, 512, 2560):
        if rows <= shape.rows and time.monotonic() < ends:
            found["pieces"][f"{rows} rows"] = pieces(problem, rows)
    found["slices"] = slices(problem, ends)
    found["launches"] = launches(problem, min(1664, shape.rows), ends)
    return found
