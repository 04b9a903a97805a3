"""Measurements of this machine, each with its share of a minute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from easydistill.doctor.finding import Finding
from easydistill.doctor.machine import memory_bytes

if TYPE_CHECKING:
    import torch

SECTION = "measured"
BUDGET = {"matrix": 2.0, "copy": 1.5, "train": 8.0, "decode": 8.0}
"""Seconds of each measurement, on top of what it takes to begin."""
WRONG = "differ from the float64 reference by more than rounding explains: do not train on this machine"


def measured() -> Iterator[Finding]:
    """Rates and errors of the device that runs would use, and what follows from them."""
    from easydistill.models.loading import choose_dtype, device

    on = device()
    numbers = choose_dtype("auto", on)
    rates: dict[str, Any] = {}
    steps: tuple[tuple[str, Callable[[torch.device, torch.dtype, dict[str, Any]], Iterator[Finding]]], ...] = (
        ("matrix products", _matrices),
        ("memory bandwidth", _bandwidth),
        ("kernels", _kernels),
        ("training step", _training),
        ("decoding step", _decoding),
    )
    for name, step in steps:
        try:
            yield from step(on, numbers, rates)
        except RuntimeError as error:
            # A device or its libraries that cannot do this are what a doctor looks for.
            yield Finding(SECTION, name, f"failed: {str(error).splitlines()[0]}", good=False, failed=True)
            return
    yield from _expected(on, numbers, rates)


def _matrices(on: torch.device, numbers: torch.dtype, rates: dict[str, Any]) -> Iterator[Finding]:
    import torch

    from easydistill.doctor.hardware import matrix_rate

    found = {dtype: matrix_rate(on, dtype, BUDGET["matrix"]) for dtype in (torch.float32, torch.bfloat16)}
    rates["matrix_flops"] = found[numbers]
    plain, short = found[torch.float32], found[torch.bfloat16]
    state = f"float32 {tera(plain)}, bfloat16 {tera(short)} TFLOP/s"
    values = {"float32_flops": plain, "bfloat16_flops": short}
    if numbers == torch.bfloat16 and short < plain:
        state += ": bfloat16 is slower here, so set training.bf16=false and inference.dtype=float32"
        yield Finding(SECTION, "matrix products", state, good=False, values=values)
    else:
        yield Finding(SECTION, "matrix products", state, values=values)


def _bandwidth(on: torch.device, numbers: torch.dtype, rates: dict[str, Any]) -> Iterator[Finding]:
    from easydistill.doctor.hardware import bandwidth

    found = rates["bandwidth"] = bandwidth(on, BUDGET["copy"])
    yield Finding(SECTION, "memory bandwidth", f"{found / 1e9:,.0f} GB/s", values={"bytes_per_second": found})


def _kernels(on: torch.device, numbers: torch.dtype, rates: dict[str, Any]) -> Iterator[Finding]:
    import torch

    from easydistill.doctor.exactness import TOLERANCE, errors

    for dtype in dict.fromkeys((torch.float32, numbers)):
        found = errors(on, dtype)
        name = str(dtype).removeprefix("torch.")
        state = f"largest error {max(found.values()):.0e} of the losses and their gradients against float64"
        good = max(found.values()) <= TOLERANCE[dtype]
        if not good:
            state = f"{', '.join(f'{loss} {error:.0e}' for loss, error in found.items())}: {WRONG}"
        yield Finding(SECTION, f"kernels {name}", state, good, {"errors": found}, failed=not good)


def _training(on: torch.device, numbers: torch.dtype, rates: dict[str, Any]) -> Iterator[Finding]:
    import torch

    from easydistill.doctor.model_steps import Shape, training

    found = rates["training"] = training(
        Shape.suiting(on.type), on, bf16=numbers == torch.bfloat16, budget=BUDGET["train"]
    )
    state = (
        f"{found.seconds * 1000:,.0f} ms for {found.tokens:,} tokens of a {found.parameters / 1e6:.0f}M model: "
        f"{tera(found.flops)} TFLOP/s, {found.flops / rates['matrix_flops']:.0%} of the matrix rate"
    )
    yield Finding(SECTION, "training step", state, values={"seconds": found.seconds, "tokens": found.tokens})


def _decoding(on: torch.device, numbers: torch.dtype, rates: dict[str, Any]) -> Iterator[Finding]:
    from easydistill.doctor.model_steps import Shape, decoding

    found = rates["decoding"] = decoding(Shape.suiting(on.type), on, numbers, BUDGET["decode"])
    state = (
        f"{found.seconds * 1000:,.1f} ms for a token of {found.rows} rows: {found.rows / found.seconds:,.0f} tokens/s"
    )
    yield Finding(SECTION, "decoding step", state, values={"seconds": found.seconds, "rows": found.rows})


def _expected(on: torch.device, numbers: torch.dtype, rates: dict[str, Any]) -> Iterator[Finding]:
    import torch

    from easydistill.doctor.expectations import Rates, expectations

    memory = torch.cuda.get_device_properties(0).total_memory if on.type == "cuda" else memory_bytes()[0]
    return expectations(Rates(memory=memory, weight_bytes=numbers.itemsize, **rates))


def tera(flops: float) -> str:
    """FLOP/s in tera, with two digits below 10."""
    value = flops / 1e12
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
