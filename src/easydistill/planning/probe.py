"""Measuring this machine for a plan: a training step and a decoding step of a small model with random weights.

They become rates (`engine/rates.py`) of training, scoring, answering and evaluation on this device, which those of runs
replace as soon as there are some.
"""

from __future__ import annotations

from easydistill.config.job import JobConfig
from easydistill.engine.rates import record
from easydistill.engine.stage import Work

BUDGET = 12.0
"""Seconds of each of the two measurements, on top of what it takes to begin."""


def probe(job: JobConfig) -> list[str]:
    """Measure and keep rates; what was measured, in words.

    Raises:
        MissingExtra: PyTorch is not installed.
    """
    from easydistill.doctor.model_steps import Shape, decoding, training
    from easydistill.engine.devices import kind_of_device
    from easydistill.models.loading import choose_dtype, device, import_torch

    torch = import_torch()
    on, kind = device(), kind_of_device()
    numbers = choose_dtype("auto", on)
    bf16 = numbers == torch.bfloat16
    shape = Shape.suiting(on.type)
    trained = training(shape, on, bf16=bf16, budget=BUDGET)
    written = decoding(shape, on, numbers, BUDGET)
    second = 2 * written.weight_bytes / numbers.itemsize * written.rows / written.seconds
    backend = getattr(getattr(job, "inference", None), "backend", "auto")
    for name in ("train", "score"):
        record(Work(name, trained.flops, kind), 1.0, probed=True)
    answers = {f"answer with {backend}", "answer with auto", "answer with transformers", "evaluate", "write and train"}
    for name in sorted(answers):
        record(Work(name, second, kind), 1.0, probed=True)
    tokens = written.rows / written.seconds
    return [
        f"measured: training at {trained.flops / 1e9:,.0f} GFLOP/s, answers at {second / 1e9:,.0f} GFLOP/s "
        f"({tokens:,.0f} tokens/s of a model of {trained.parameters / 1e6:.0f} million parameters)"
    ]
