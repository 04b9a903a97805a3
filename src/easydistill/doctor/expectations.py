"""From measured rates to what a user can expect of real models. Rough on purpose, and rounded to say so.

Training: 6 FLOP a token and parameter, at the rate that the small model's training step reached. Decoding: each step
reads all weights once and has a fixed cost a layer (launches, sampling), which the small model shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from easydistill.doctor.finding import Finding
from easydistill.doctor.model_steps import FLOP_PER_PARAMETER, Decoding, Training

SECTION = "expect"
GIB = 2**30
TRAINED_BYTES = 16
"""A parameter's weight, gradient and two moments of AdamW, in float32."""
FILLED = 0.85
"""Share of the memory that weights may take; activations need the rest."""


@dataclass(frozen=True)
class Size:
    """A model that users know."""

    name: str
    parameters: float
    layers: int


SIZES = (Size("0.5B", 494e6, 24), Size("1.5B", 1544e6, 28), Size("7B", 7616e6, 28))


@dataclass(frozen=True)
class Rates:
    """What was measured of a device."""

    matrix_flops: float
    """In the numbers that models compute in."""
    bandwidth: float
    """Bytes a second."""
    memory: int
    """Bytes."""
    weight_bytes: int
    """Of a parameter of a model that only answers."""
    training: Training
    decoding: Decoding


def expectations(rates: Rates) -> Iterator[Finding]:
    """Training and labelling speed by size of model."""
    for size in SIZES:
        yield _training(rates, size)
    for size in SIZES:
        yield _labelling(rates, size)


def _training(rates: Rates, size: Size) -> Finding:
    name = f"train {size.name}"
    needed = TRAINED_BYTES * size.parameters
    if needed > FILLED * rates.memory:
        state = f"does not fit: full fine-tuning takes {needed / GIB:.0f} GiB before activations; try training.lora"
        return Finding(SECTION, name, state, values={"fits": False})
    speed = rates.training.flops / (FLOP_PER_PARAMETER * size.parameters)
    state = f"about {about(speed)} tokens/s, {about(3600 * speed)} in an hour (SFT; distillation from signals alike)"
    return Finding(SECTION, name, state, values={"fits": True, "tokens_per_second": _rounded(speed)})


def _labelling(rates: Rates, size: Size) -> Finding:
    name = f"answers {size.name}"
    needed = rates.weight_bytes * size.parameters
    if needed > FILLED * rates.memory:
        state = f"does not fit: a teacher of this size takes {needed / GIB:.0f} GiB"
        return Finding(SECTION, name, state, values={"fits": False})
    speed = rates.decoding.rows / decoding_seconds(rates, size)
    state = f"about {about(speed)} tokens/s from a teacher in transformers, {rates.decoding.rows} rows together"
    return Finding(SECTION, name, state, values={"fits": True, "tokens_per_second": _rounded(speed)})


def decoding_seconds(rates: Rates, size: Size) -> float:
    """Of one step of a model of some size, with as many rows as were measured."""
    seen = rates.decoding
    fixed = max(0.0, seen.seconds - _work(rates, seen.weight_bytes / rates.weight_bytes)) / seen.layers
    return size.layers * fixed + _work(rates, size.parameters)


def _work(rates: Rates, parameters: float) -> float:
    """Seconds that a decoding step cannot do without: its weights are read, or multiplied."""
    read = parameters * rates.weight_bytes / rates.bandwidth
    return max(read, 2 * parameters * rates.decoding.rows / rates.matrix_flops)


def _rounded(value: float) -> float:
    """To one digit, or to a half if that digit is 1: the estimate knows no more."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** math.floor(math.log10(value))
    step = unit / 2 if value < 1.75 * unit else unit
    return round(value / step) * step


def about(value: float) -> str:
    """A rough figure in words."""
    value = _rounded(value)
    for limit, word in ((1e9, "billion"), (1e6, "million")):
        if value >= limit:
            return f"{value / limit:,.3g} {word}"
    return f"{value:,.6g}" if value >= 1 else f"{value:.1g}"
