"""What a training takes, told before it runs: memory of each process, disk, and how much there is to compute."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, replace
from typing import Literal

from easydistill.config.launch import LaunchConfig
from easydistill.config.models import ModelsConfig
from easydistill.config.training import TrainerConfig
from easydistill.engine.devices import GPU, device_memory, kind_of_device
from easydistill.engine.stage import Estimate, Work
from easydistill.launch.stages import process_count
from easydistill.methods.shared.memory import GB, ROWS, TrainingMemory, memory_lines
from easydistill.methods.shared.outlook import Steps
from easydistill.methods.shared.sharded_memory import STEPS_ALONE, Besides, process_lines, process_memory
from easydistill.models.size import student_parameters, student_shape

SAVED_BYTES = 2
"""Of a weight of the saved student."""
_FILES = 4_000_000
"""Beside the student's weights: its tokenizer."""
_STATE_BYTES = {"adamw_torch": 8, "adamw_torch_fused": 8, "adamw_8bit": 2.1, "paged_adamw_8bit": 2.1, "sgd": 0}
"""Of a trained weight's optimiser state in a checkpoint; Adafactor's is next to none."""


@dataclass(frozen=True)
class TrainingFacts:
    """What a training is, as far as its resources are concerned."""

    models: ModelsConfig
    training: TrainerConfig
    launch: LaunchConfig | None = None
    besides: Besides = STEPS_ALONE
    steps: Steps = ROWS

    @property
    def on_this_machine(self) -> TrainingFacts:
        """The same with the device on which it would run."""
        return replace(self, steps=replace(self.steps, on=device_kind(self.launch)))


def device_kind(launch: LaunchConfig | None) -> Literal["cpu", "gpu"]:
    """Where a training would run: on a GPU if this machine has one, or `launch` says that another has."""
    if launch is not None and launch.gpu_memory_gb is not None:
        return "gpu"
    return kind_of_device()


def training_estimate(facts: TrainingFacts) -> Estimate:
    """Disk and memory for training the student, the latter in each process; unknown if its size is."""
    parameters = _parameters(facts.models)
    if parameters is None:
        return Estimate()
    memory = process_needs(facts.on_this_machine)
    trained = parameters if memory is None or facts.training.lora is None else memory.trained
    disk = checkpoint_bytes(facts, parameters, trained) | {"student": SAVED_BYTES * parameters + _FILES}
    return Estimate(
        disk_bytes=sum(disk.values()),
        disk_parts=disk,
        memory_bytes=None if memory is None else memory.total,
        memory_parts=None if memory is None else memory.named,
    )


def _parameters(models: ModelsConfig) -> int | None:
    """Of the student: counted in its weights, or by its config where they are not here; None if neither is."""
    counted = student_parameters(models)
    if counted is not None:
        return counted
    shape = student_shape(models)
    return None if shape is None else shape.parameters


def process_needs(facts: TrainingFacts) -> TrainingMemory | None:
    """The memory of one process; None if the student's shape is not known."""
    shape = student_shape(facts.models)
    if shape is None:
        return None
    how, bf16 = facts.launch or LaunchConfig(), computes_in_bf16(facts.training)
    return process_memory(
        shape, facts.training, how, ranks_of(facts.launch), bf16=bf16, steps=facts.steps, besides=facts.besides
    ).device


def checkpoint_bytes(facts: TrainingFacts, parameters: int, trained: int) -> dict[str, int]:
    """Checkpoints as they are on disk at once: a new one is written before an old one is removed.

    The last step writes one, too, which is there until the student is saved.
    """
    training = facts.training
    each = 2 if getattr(training, "weights", "float32") == "bfloat16" else 4
    weights = each * parameters if training.lora is None else 4 * trained
    one = round(weights + _STATE_BYTES.get(training.optim, 0) * trained)
    steps = optimiser_steps(facts)
    made = training.save_total_limit + 1 if steps is None else math.ceil(steps / training.save_steps)
    return {"checkpoints": one * min(made, training.save_total_limit + 1)}


def optimiser_steps(facts: TrainingFacts) -> int | None:
    """How many steps there will be; None if the number of rows is not known and decides it."""
    training, outlook = facts.training, facts.steps.outlook
    if training.max_steps is not None:
        return training.max_steps
    if outlook is None:
        return None
    rows = outlook.rows // 2 if facts.steps.of == "pairs" else outlook.rows
    if facts.steps.of == "answers":
        rows *= facts.steps.answers_each
    batch = training.per_device_train_batch_size
    budget = getattr(training, "max_tokens_per_batch", None)
    if getattr(training, "packing", False):
        rows = max(1, -(-outlook.tokens // training.max_length))
    elif budget is not None:
        batch = max(1, round(budget * outlook.rows / max(1, outlook.tokens)))
    batches = -(-rows // (batch * ranks_of(facts.launch)))
    return math.ceil(training.num_train_epochs * -(-batches // training.gradient_accumulation_steps))


def work_of_training(facts: TrainingFacts) -> Work | None:
    """How much a training computes; None if student or rows are not known."""
    parameters = _parameters(facts.models)
    return None if parameters is None else training_work(facts.on_this_machine, parameters)


def training_work(facts: TrainingFacts, parameters: int) -> Work | None:
    """Floating-point operations of all steps, by the usual count: 6 a token and parameter, 8 if layers are computed
    again, 4 and a little where adapters alone are trained, 2 for each pass without gradients."""
    steps, outlook, training = optimiser_steps(facts), facts.steps.outlook, facts.training
    if steps is None or outlook is None or not outlook.lengths:
        return None
    batch = facts.steps.batch(training)
    # Batches are of similar rows, so that most are near the mean.
    rows = 2 if facts.steps.of == "pairs" else 1
    mean = outlook.tokens / max(1, outlook.rows) + (facts.steps.answer if facts.steps.of == "answers" else 0)
    each = rows * training.per_device_train_batch_size * mean
    if getattr(training, "packing", False) or getattr(training, "max_tokens_per_batch", None) is not None:
        each = batch.tokens
    tokens = steps * training.gradient_accumulation_steps * each
    if training.max_steps is None and facts.steps.of != "answers":
        tokens = training.num_train_epochs * outlook.tokens
    per_token = (4 if training.lora is not None else 6) + (2 if training.gradient_checkpointing else 0)
    if facts.steps.of != "rows":
        # The reference's pass; or what is scored before it is learned, and written.
        per_token += 2 if facts.steps.of == "pairs" else 4
    kind = "write and train" if facts.steps.of == "answers" else "train"
    return Work(kind, per_token * parameters * tokens, facts.steps.on)


def memory_notes(facts: TrainingFacts) -> list[str]:
    """A line if the training does not fit into this machine's GPU, or without one into its memory; with several
    processes, a line in any case with what each of them holds."""
    facts = facts.on_this_machine
    shape, device, bf16 = student_shape(facts.models), device_memory(), computes_in_bf16(facts.training)
    launch, ranks = facts.launch, ranks_of(facts.launch)
    if launch is None or (ranks == 1 and not launch.shares):
        return memory_lines(shape, facts.training, device, bf16=bf16, steps=facts.steps)
    available = None
    if launch.gpu_memory_gb is not None:
        available = round(launch.gpu_memory_gb * GB)
    elif device is not None:
        has, where = device
        available = has if where == GPU else has // process_count(launch)
    return process_lines(
        shape,
        facts.training,
        launch,
        ranks,
        available,
        bf16=bf16,
        steps=facts.steps,
        besides=facts.besides,
    )


def ranks_of(launch: LaunchConfig | None) -> int:
    """Processes that train together, as far as this machine tells."""
    if launch is None:
        return 1
    nodes = 1 if launch.nodes == "auto" else launch.nodes
    return nodes * process_count(launch)


def computes_in_bf16(training: TrainerConfig) -> bool:
    """Whether the training would compute in bfloat16 on this machine."""
    if training.bf16 != "auto":
        return training.bf16
    from easydistill.models.loading import computes_well_in_bf16, device

    return importlib.util.find_spec("torch") is not None and computes_well_in_bf16(device())
