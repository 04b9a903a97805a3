"""What one of several processes that train together holds: a training's memory (`memory.py`) under each strategy.

    strategy   weights   gradients       optimiser               exchange
    ddp        whole     whole           whole                   gradients again, in buckets
    zero1      whole     whole           1/R, with master copy   a bucket of gradients
    zero2      whole     1/R             1/R, with master copy   a bucket of gradients
    zero3      1/R       1/R             1/R, with master copy   up to 10⁹ gathered weights, a bucket of gradients
    fsdp2      1/R       1/R             1/R                     the ends of the model and two layers, gathered

A student that writes answers while it trains has all weights for that: its own under the first three; under the others
a copy, gathered between steps, with linear layers in the number type that they are computed in. A reference, which is
not trained, is whole under the first three and in parts under the others.

R is the number of processes. The master copy is DeepSpeed's own, in float32, of the weights whose optimiser state a
process keeps: it has one also where the weights are in float32 already. Activations and the loss are each process's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

from easydistill.config.deepspeed import BUCKET, offload_devices, zero_stage
from easydistill.config.deepspeed_checks import deepspeed_issues
from easydistill.config.fsdp2_checks import fsdp2_issues
from easydistill.config.launch import LaunchConfig, StrategyName
from easydistill.config.training import TrainerConfig
from easydistill.methods.shared.memory import GB, ROWS, TrainingMemory, fits, training_memory
from easydistill.methods.shared.outlook import Steps
from easydistill.models.size import ModelShape

STRATEGIES: tuple[StrategyName, ...] = ("ddp", "zero1", "zero2", "fsdp2", "zero3")
"""From the fastest to the one that holds least."""
_LIVE = 1_000_000_000
"""Weights that DeepSpeed keeps gathered because they are soon needed again."""


@dataclass(frozen=True)
class Besides:
    """What a training holds beside its steps."""

    answers: bool = False
    """The student writes answers while it trains."""
    reference: bool = False
    """A second model of its size is kept as it was."""


STEPS_ALONE = Besides()


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of one process."""

    device: TrainingMemory
    host: int = 0
    """In the CPU's memory, where `launch.offload` or a file of DeepSpeed's has moved them."""
    disk: int = 0
    """On a disk, where such a file has moved them."""


def process_memory(
    shape: ModelShape,
    training: TrainerConfig,
    launch: LaunchConfig,
    ranks: int,
    *,
    bf16: bool,
    steps: Steps = ROWS,
    besides: Besides = STEPS_ALONE,
) -> ProcessMemory:
    """The memory of one of `ranks` processes at the peak of a step.

    Args:
        bf16: whether it computes in bfloat16.
        steps: what a micro-batch is.
    """
    strategy = _strategy(launch)
    whole = training_memory(shape, training, bf16=bf16, steps=steps, alone=strategy == "ddp" and ranks == 1)
    part = _part(whole, shape, training, strategy, ranks)
    in_parts = strategy in ("zero3", "fsdp2")
    gathered = _gathered(shape, training, bf16=bf16)
    if besides.reference:
        more = gathered // ranks if in_parts else _each(training) * shape.parameters
        part = replace(part, weights=part.weights + more)
    if besides.answers and in_parts:
        part = replace(part, answers=max(part.answers, gathered - part.of_a_step))
    moved = {"cpu": 0, "nvme": 0}
    on_device = part
    for name, where in offload_devices(launch).items():
        if name == "optimizer":
            moved[where] += part.optimiser
            on_device = replace(on_device, optimiser=0)
        else:
            moved[where] += part.weights
            on_device = replace(on_device, weights=0)
    return ProcessMemory(on_device, host=moved["cpu"], disk=moved["nvme"])


def _strategy(launch: LaunchConfig) -> StrategyName:
    """What a `launch` section means, where a file of DeepSpeed's says it too."""
    if not launch.uses_deepspeed:
        return launch.strategy
    stages: dict[int, StrategyName] = {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}
    return stages[zero_stage(launch)]


def _each(training: TrainerConfig) -> int:
    """Bytes of a weight."""
    return 2 if getattr(training, "weights", "float32") == "bfloat16" else 4


def _gathered(shape: ModelShape, training: TrainerConfig, *, bf16: bool) -> int:
    """Bytes of all weights as answers are written with them: linear layers in the number type of the computation."""
    each = _each(training)
    computed = 2 if bf16 else each
    embedding = shape.vocabulary * shape.hidden
    # A tied output layer is cast when answers begin.
    cast = computed if shape.tied and computed < each else 0
    return computed * (shape.parameters - embedding) + (each + cast) * embedding


def _part(
    whole: TrainingMemory, shape: ModelShape, training: TrainerConfig, strategy: StrategyName, ranks: int
) -> TrainingMemory:
    each = _each(training)
    trained_each = each if training.lora is None else 4
    trained = whole.trained
    if strategy == "ddp":
        return replace(whole, exchange=whole.gradients if ranks > 1 else 0)
    gathered = _ends(shape) + 2 * _layer(shape)
    # Layers that are computed again need their weights in bfloat16 no longer than they are gathered.
    copies = min(whole.copies, 2 * 2 * _layer(shape)) if training.gradient_checkpointing else whole.copies
    if strategy == "fsdp2":
        # What is gathered has gradients of the same size before they are shared out.
        exchange = gathered * each + (gathered * trained_each if training.lora is None else 0)
        return replace(
            whole,
            weights=whole.weights // ranks,
            copies=copies,
            gradients=whole.gradients // ranks,
            optimiser=whole.optimiser // ranks,
            exchange=exchange,
        )
    optimiser = (whole.optimiser + 4 * trained) // ranks
    bucket = trained_each * min(trained, BUCKET)
    gradients = whole.gradients if strategy == "zero1" else whole.gradients // ranks
    if strategy != "zero3":
        return replace(whole, gradients=gradients, optimiser=optimiser, exchange=bucket)
    return replace(
        whole,
        weights=whole.weights // ranks,
        copies=copies,
        gradients=gradients,
        optimiser=optimiser,
        exchange=bucket + each * min(shape.parameters, max(gathered, _LIVE)),
    )


def _ends(shape: ModelShape) -> int:
    """Parameters of the embedding and the output layer."""
    return shape.vocabulary * shape.hidden * (1 if shape.tied else 2)


def _layer(shape: ModelShape) -> int:
    return (shape.parameters - _ends(shape)) // shape.layers


# --- does it fit? ------------------------------------------------------------------------------------------------


def process_lines(
    shape: ModelShape | None,
    training: TrainerConfig,
    launch: LaunchConfig,
    ranks: int,
    available: int | None,
    *,
    bf16: bool,
    steps: Steps = ROWS,
    besides: Besides = STEPS_ALONE,
) -> list[str]:
    """What each process holds; if that is more than it can have, the strategy with which it would fit.

    Args:
        ranks: processes that share the model.
        available: bytes that a process can have: its GPU's, or its share of the machine's; None if they cannot be told.
        besides: what the training holds beside its steps.
    """
    if shape is None:
        return []
    needed = process_memory(shape, training, launch, ranks, bf16=bf16, steps=steps, besides=besides)
    what = f"training holds about {_gb(needed.device.total)} in each of {ranks} processes under {_named(launch)}"
    line = f"{what} ({needed.device.parts()}){_beside(needed)}"
    if available is None:
        return [line]
    if fits(needed.device, available):
        return [f"{line}; it can have {_gb(available)}"]
    problem = f"{line}, but can have {_gb(available)}"
    for changes in _changes(training):
        changed = training.model_copy(update=changes)
        for other in _others(launch, changed):
            memory = process_memory(shape, changed, other, ranks, bf16=bf16, steps=steps, besides=besides)
            if not fits(memory.device, available):
                continue
            how = _difference(launch, other, changes)
            return [f"{problem}; {how} it holds about {_gb(memory.device.total)}{_beside(memory)}"]
    hint = "take a smaller student, shorter rows, or more processes"
    return [f"{problem}; it fits under no strategy that goes with this training: {hint}"]


def _difference(launch: LaunchConfig, other: LaunchConfig, changes: dict[str, object]) -> str:
    """What to write otherwise, in words."""
    words = [f"launch.strategy={other.strategy}"] if other.strategy != launch.strategy else []
    words += [f"launch.offload={json.dumps(other.offload)}"] if other.offload != launch.offload else []
    words += [f"training.{name}={str(value).lower()}" for name, value in changes.items()]
    found = [f"with {', '.join(words)}"] if words else []
    return " and ".join(found + (["without launch.deepspeed"] if launch.deepspeed is not None else []))


def _changes(training: TrainerConfig) -> Iterator[dict[str, object]]:
    yield {}
    if not training.gradient_checkpointing:
        yield {"gradient_checkpointing": True}


def _others(launch: LaunchConfig, training: TrainerConfig) -> Iterator[LaunchConfig]:
    """Ways to share the model that go with a training, those that cost least first."""
    ways: list[tuple[StrategyName, tuple[str, ...]]] = []
    if not offload_devices(launch):
        ways += [(name, ()) for name in STRATEGIES]
    ways += [("zero2", ("optimizer",)), ("zero3", ("optimizer", "parameters"))]
    for name, offload in ways:
        other = launch.model_copy(update={"strategy": name, "offload": offload, "deepspeed": None})
        if not deepspeed_issues(other, training) and not fsdp2_issues(other, training):
            yield other


def _named(launch: LaunchConfig) -> str:
    strategy = _strategy(launch)
    named = launch.sharing if launch.sharing == strategy else f"{launch.sharing} ({strategy})"
    offloaded = " and ".join(offload_devices(launch))
    return f"{named}, with {offloaded} offloaded" if offloaded else named


def _beside(memory: ProcessMemory) -> str:
    found = f", and {_gb(memory.host)} of the CPU's memory" if memory.host else ""
    return f"{found}, and {_gb(memory.disk)} on its disk" if memory.disk else found


def _gb(size: int) -> str:
    return f"{size / GB:.0f} GB" if size >= 10 * GB else f"{size / GB:.1f} GB"
