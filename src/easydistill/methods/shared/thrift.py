"""What a training can do with less memory, and the room that its files take: told when there is too little."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from easydistill.config.models import ModelsConfig
from easydistill.config.training import LoraConfig, TrainerConfig
from easydistill.engine.machine.memory import gpu_memory, memory_limit
from easydistill.engine.machine.room import Needed, words
from easydistill.engine.stage import Estimate
from easydistill.methods.shared.estimates import SAVED_BYTES
from easydistill.models.size import student_parameters

_MOST = 4
"""Lines that are shown."""
_SAFE = 0.7
"""Share of what there is that settings may take to be called enough: the estimate is about a fifth off."""


class Training(Protocol):
    """A stage that trains by its `training` section."""

    _training: Any

    def estimate(self, directory: Path) -> Estimate: ...


def less_memory(stage: Training) -> list[str]:
    """Settings with which a training takes less memory, a line each with what it takes then; the first that are enough,
    if some are, else those that help most.
    """
    training: TrainerConfig = stage._training

    def held(changes: dict[str, Any]) -> int | None:
        other = copy.copy(stage)
        given = {name: getattr(training, name) for name in training.model_fields_set}
        other._training = type(training).model_validate({**given, **changes})
        return other.estimate(Path()).memory_bytes

    now = held({})
    gpu, limit = gpu_memory(), memory_limit()
    has = gpu.total if gpu is not None else None if limit is None else limit.bytes
    found: list[str] = []
    unsure: list[str] = []
    """Where the estimate shows no difference: it may be wrong, or memory is short for another reason."""
    for changes in _changes(training):
        try:
            less = held(changes)
        except ValueError:
            # Settings that do not go together.
            continue
        if less is None or now is None or less > 0.98 * now:
            unsure.append(_line(changes, training, ""))
            continue
        found.append(_line(changes, training, f": about {words(less)} instead of {words(now)}"))
        if less <= _SAFE * min(now, has or now) and len(found) > 1:
            break
    return found[-_MOST:] if found else unsure[:_MOST]


def _line(changes: dict[str, Any], training: TrainerConfig, figures: str) -> str:
    settings = " ".join(f"training.{name}={_shown(value)}" for name, value in changes.items())
    same = " (as many rows a step)" if "gradient_accumulation_steps" in changes else ""
    cuts = " (longer rows lose the end of their answers)" if "max_length" in changes else ""
    return f"{settings}{same}{cuts}{figures}"


def _changes(training: TrainerConfig) -> Iterator[dict[str, Any]]:
    """Settings to try: those that change nothing of what is learned come first."""
    batch = list(_smaller_batches(training))
    recomputed: dict[str, Any] = {} if training.gradient_checkpointing else {"gradient_checkpointing": True}
    yield from batch[:1]
    if recomputed:
        yield recomputed
    least = {**(batch[-1] if batch else {}), **recomputed}
    yield from [*batch[1:], *([least] if batch and recomputed else [])]
    narrow = {"weights": "bfloat16"} if "weights" in type(training).model_fields else {}
    if training.lora is None:
        if training.optim.startswith("adamw_torch") and importlib.util.find_spec("torchao") is not None:
            yield {**least, **narrow, "optim": "adamw_8bit"}
        yield {**least, **narrow, "lora": LoraConfig()}
    if training.max_length >= 128:
        yield {**least, "max_length": training.max_length // 2}


def _smaller_batches(training: TrainerConfig) -> Iterator[dict[str, Any]]:
    """Smaller micro-batches with as many rows in each optimiser step."""
    budget = getattr(training, "max_tokens_per_batch", None)
    if budget is not None:
        if budget > training.max_length:
            yield {"max_tokens_per_batch": max(training.max_length, budget // 2)}
        return
    rows = training.per_device_train_batch_size
    for smaller in range(rows // 2, 0, -1):
        if rows % smaller == 0:
            yield {
                "per_device_train_batch_size": smaller,
                "gradient_accumulation_steps": rows // smaller * training.gradient_accumulation_steps,
            }


def _shown(value: Any) -> str:
    if isinstance(value, LoraConfig):
        return "{}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def training_room(models: ModelsConfig, stage: Training) -> Needed:
    """What a training writes: its student's weights for certain, and what `plan` estimates at most."""
    parameters = student_parameters(models)
    if parameters is None:
        return Needed()
    return Needed(certain=SAVED_BYTES * parameters, likely=stage.estimate(Path()).disk_bytes or 0)
