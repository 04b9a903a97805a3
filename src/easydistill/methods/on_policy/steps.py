"""Optimiser steps of a training loop of our own, whatever shares the student: forward, backward, update, checkpoints.

Losses are parts of one sum over all ranks, and so are gradients.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.compat import FusedTrainer, training_arguments, uses_bf16
from easydistill.methods.shared.ranks import sum_gradients, world_size
from easydistill.methods.shared.strategies.base import strategy
from easydistill.models.loading import device


class Steps:
    """Steps of a model that each rank has whole, for itself.

    Args:
        student: the model, which `model` may wrap with adapters.
        folder: of the checkpoints.
        total: steps of the whole training.
    """

    def __init__(self, student: Any, model: Any, config: TrainingConfig, folder: Path, total: int) -> None:
        self._student, self._model, self._config = student, model, config
        # transformers' Trainer only creates optimiser and schedule here, by their names in the config.
        maker = Trainer(model=model, args=training_arguments(config, folder, device()))
        maker.create_optimizer_and_scheduler(total)
        self._optimizer, self._scheduler = maker.optimizer, maker.lr_scheduler
        self._trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}

    def forward(self, work: Callable[[], Tensor]) -> Tensor:
        """What `work` computes with the model in training."""
        return work()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add to the gradients. Each rank has as many micro-batches; `last` with the last one of the step."""
        loss.backward()
        if last:
            sum_gradients(self._trainable.values())

    def update(self) -> float:
        """Take the step; returns the norm of the gradient before it is clipped."""
        norm = float(torch.nn.utils.clip_grad_norm_(self._trainable.values(), self._most))
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()
        return norm

    @property
    def _most(self) -> float:
        return self._config.max_grad_norm or math.inf

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self._scheduler.get_last_lr()[0])

    def whole(self) -> AbstractContextManager[Any]:
        """The student with all its weights as they are now, to compute without gradients. All ranks enter."""
        return contextlib.nullcontext(self._student)

    def state(self) -> dict[str, Any]:
        """What the first rank writes into its file of a checkpoint."""
        return {
            "weights": self._trainable,
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
        }

    def save_parts(self, checkpoint: Path) -> None:
        """Write what each rank holds; all call it."""

    def load(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Go on from a checkpoint, with the `state` in its file."""
        with torch.no_grad():
            for name, value in state["weights"].items():
                self._trainable[name].copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])

    def finish(self) -> None:
        """Make the model an ordinary module with all its weights, in the first rank."""


class SharedSteps(Steps):
    """Steps of a model that a strategy shares out, as transformers' Trainer takes them.

    DeepSpeed and `fully_shard` average gradients over ranks.
    """

    def __init__(self, student: Any, model: Any, config: TrainingConfig, folder: Path, total: int) -> None:
        self._student, self._model, self._config, self._total = student, model, config, total
        self._trainer = FusedTrainer(model=model, args=training_arguments(config, folder, device()), sampler=None)
        computed = torch.bfloat16 if uses_bf16(config, device()) else None
        self._gathered = strategy().gathering(student, computed)
        strategy().prepared(self._trainer)
        self._wrapped, _ = self._trainer._prepare_for_training(total, None, None)
        self._optimizer, self._scheduler = self._trainer.optimizer, self._trainer.lr_scheduler

    @property
    def _by_deepspeed(self) -> bool:
        return bool(self._trainer.is_deepspeed_enabled)

    def forward(self, work: Callable[[], Tensor]) -> Tensor:
        """Inside the model's own forward, around which weights are gathered."""
        own = self._model.__dict__.get("forward")
        self._model.forward = work
        try:
            found: Tensor = self._wrapped()
        finally:
            del self._model.forward
            if own is not None:
                self._model.forward = own
        return found

    def backward(self, loss: Tensor, *, last: bool) -> None:
        total = loss * world_size()
        if self._by_deepspeed:
            self._wrapped.set_gradient_accumulation_boundary(is_boundary=last)
            self._wrapped.backward(total, scale_wrt_gas=False)
        else:
            total.backward()

    def update(self) -> float:
        if self._by_deepspeed:
            # It clips by `gradient_clipping`, which is `max_grad_norm`.
            self._wrapped.step()
            norm = float(self._wrapped.get_global_grad_norm())
        else:
            clip = self._trainer.accelerator.clip_grad_norm_
            norm = float(clip(self._model.parameters(), self._most))
            self._optimizer.step()
        self._scheduler.step()
        self._wrapped.zero_grad()
        return norm

    @contextlib.contextmanager
    def whole(self) -> Iterator[Any]:
        if self._gathered is None:
            yield self._student
            return
        with self._gathered.whole() as model:
            yield model

    def state(self) -> dict[str, Any]:
        return {}

    def save_parts(self, checkpoint: Path) -> None:
        self._trainer.save_model(str(checkpoint), _internal_call=True)
        self._trainer._save_optimizer_and_scheduler(str(checkpoint))

    def load(self, checkpoint: Path, state: dict[str, Any]) -> None:
        if self._by_deepspeed:
            from transformers.integrations.deepspeed import deepspeed_load_checkpoint

            deepspeed_load_checkpoint(self._wrapped, str(checkpoint), load_module_strict=self._config.lora is None)
        else:
            self._trainer._load_from_checkpoint(str(checkpoint))
        self._trainer._load_optimizer_and_scheduler(str(checkpoint))

    def finish(self) -> None:
        strategy().whole(self._trainer, self._model)


def steps_of(student: Any, model: Any, config: TrainingConfig, folder: Path, total: int) -> Steps:
    """The steps of a training of `model`, as this process's strategy has it."""
    kind = SharedSteps if strategy().launch.shares else Steps
    return kind(student, model, config, folder, total)
