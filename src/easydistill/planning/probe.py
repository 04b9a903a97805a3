"""Measuring this machine for a plan: a training step of the student's width, and a decoding step of the teacher's.

The models have random weights, the widths and vocabularies of the job's, and few layers, each of which costs the same.
What is measured becomes rates (`engine/rates.py`) of training, scoring, answering and evaluation on this machine, which
those of runs replace as soon as there are some.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from easydistill.config.job import JobConfig
from easydistill.config.models import ModelsConfig
from easydistill.engine.rates import record
from easydistill.engine.stage import Work
from easydistill.models.size import ModelShape, student_shape

if TYPE_CHECKING:
    from easydistill.doctor.model_steps import Shape

BUDGET = 12.0
"""Seconds of each of the two measurements, on top of what it takes to begin."""
_LAYERS = 6
_HEADS = 128
"""Widths are multiples of two heads."""
_TOGETHER = 64
"""Rows that are answered together, if the config does not say."""


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
    usual = Shape.suiting(on.type)
    trained = training(_like(usual, _student(job)), on, bf16=bf16, budget=BUDGET)
    asked: Any = getattr(job, "inference", None)
    together = getattr(asked, "batch_size", None) or _TOGETHER
    written = decoding(replace(_like(usual, _teacher(job)), answers=together), on, numbers, BUDGET)
    second = 2 * written.weight_bytes / numbers.itemsize * written.rows / written.seconds
    for name in ("train", "score"):
        record(Work(name, trained.flops, kind), 1.0, probed=True)
    backends = {getattr(asked, "backend", "auto"), "auto", "transformers"}
    for name in sorted({"evaluate", "write and train"} | {f"answer with {backend}" for backend in backends}):
        record(Work(name, second, kind), 1.0, probed=True)
    return [
        f"measured: training at {trained.flops / 1e9:,.0f} GFLOP/s, and answers to {written.rows} prompts together at "
        f"{second / 1e9:,.0f} GFLOP/s"
    ]


def _student(job: Any) -> ModelShape | None:
    models = getattr(job, "models", None)
    return student_shape(models) if isinstance(models, ModelsConfig) else None


def _teacher(job: Any) -> ModelShape | None:
    """Of the teacher on this machine, else of the student, which answers in evaluations."""
    models = getattr(job, "models", None)
    reference = getattr(models, "teacher", None)
    found = None if reference is None else student_shape(ModelsConfig(student=reference))
    return found or _student(job)


def _like(usual: Shape, model: ModelShape | None) -> Shape:
    """The usual batches with a model of a job's width and vocabulary."""
    if model is None:
        return usual
    width = -(-model.hidden // _HEADS) * _HEADS
    return replace(usual, width=width, layers=min(model.layers, _LAYERS), vocabulary=model.vocabulary)
