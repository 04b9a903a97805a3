"""Progress, metrics, checkpoints and outcome of every training on transformers' Trainer."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState

from easydistill.config.training import TrainerConfig
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter, Task
from easydistill.errors import DataError
from easydistill.methods.shared.checkpoints import mark_whole, rotate, step_of
from easydistill.methods.shared.compiling import CompiledLayers
from easydistill.methods.shared.phases import Phases
from easydistill.methods.shared.ranks import any_rank, wait_for_all, world_size
from easydistill.methods.shared.strategies.base import strategy
from easydistill.models.allocation import reused_memory


@dataclass(frozen=True)
class TrainingOutcome:
    """Figures of a finished training."""

    steps: int
    final_loss: float | None
    trained_tokens: int
    parameters: int
    trainable_parameters: int
    resumed_from_step: int
    alarms: Mapping[str, Any] = field(default_factory=dict)
    """What went wrong, by name: its step, and its sentence under `told`."""
    fit: Mapping[str, Any] = field(default_factory=dict)
    """A setting that was chosen to suit the student, and why under `told`."""


def run_trainer(trainer: Any, resume: Path | None) -> None:
    """Train with a `Watch` among the callbacks, from a checkpoint if there is one, to the end or a requested stop."""
    trainer.remove_callback(PrinterCallback)
    strategy().prepared(trainer)
    with contextlib.suppress(AllStepsDone), reused_memory(trainer.args.device):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)


def training_outcome(state: TrainerState, model: Any, trained_tokens: int, resume: Path | None) -> TrainingOutcome:
    """The outcome of a training with transformers' Trainer or a subclass.

    Args:
        model: the trained model, its adapters not merged yet.
        resume: the checkpoint that training resumed from.
    """
    parameters, trainable = count_parameters(model)
    return TrainingOutcome(
        steps=state.global_step,
        # From the history, which checkpoints keep: the same whether or not the run was interrupted.
        final_loss=next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None),
        trained_tokens=trained_tokens,
        parameters=parameters,
        trainable_parameters=trainable,
        resumed_from_step=step_of(resume) if resume else 0,
    )


def mean_figures(entries: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over the entries that have it, by name."""
    names = sorted({name for entry in entries for name in entry})
    return {name: fmean(entry[name] for entry in entries if name in entry) for name in names}


def count_parameters(model: Any) -> tuple[int, int]:
    """(all, trained) parameters of a model."""
    sizes = [(value.numel(), value.requires_grad) for value in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


class AllStepsDone(Exception):
    """Training resumed from the checkpoint of its last step: weights and state are loaded, nothing is left to do.

    transformers' Trainer checks for the end after a step, so it would take one step too many if the last step is in
    the middle of an epoch.
    """


class Watch(TrainerCallback):
    """Reports progress and metrics, marks checkpoints as complete, and stops when requested."""

    def __init__(
        self,
        reporter: Reporter,
        stop: StopSignal,
        config: TrainerConfig,
        figures: Callable[[], dict[str, float]] | None = None,
        stage: str = "train",
        layers: CompiledLayers | None = None,
    ) -> None:
        self._layers = layers
        self._reporter = reporter
        self._figures = figures
        self._stop = stop
        self._config = config
        self._stage = stage
        self._task: Task | None = None
        self._context: Any = None
        self._step_at = (0, time.monotonic())
        self.last_loss: float | None = None
        self.phases: Phases | None = None
        """Where the seconds go, for trainings that tell."""

    def __enter__(self) -> Watch:
        return self

    def task(self, label: str, total: int, done: int) -> contextlib.AbstractContextManager[Task]:
        """Progress of work before the first step."""
        return self._reporter.task(label, total, done=done, unit="rows")

    def __exit__(self, *exception: Any) -> None:
        if self._context is not None:
            self._context.__exit__(*exception)
            self._context = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._context = self._reporter.task("Training", state.max_steps, done=state.global_step, unit="steps")
        self._task = self._context.__enter__()
        self._step_at = (state.global_step, time.monotonic())
        if self.phases is not None:
            self.phases.begin()
        if state.global_step >= state.max_steps:
            raise AllStepsDone

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        if self._task is not None:
            self._task.advance(note=f"loss {self.last_loss:.3f}" if self.last_loss is not None else None)
        # Together: a rank that went on alone would wait for the others in its next step.
        if any_rank(self._stop.requested):
            control.should_save = True
            control.should_training_stop = True
        return control

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise DataError(
                f"the training loss is {loss} at step {state.global_step}\n"
                "    → lower training.learning_rate, or set training.bf16=false"
            )
        norm = logs.get("grad_norm")
        if norm is not None and not math.isfinite(norm):
            # Clipping by this norm has zeroed or corrupted the gradient.
            raise DataError(
                f"the norm of the gradient is {norm} at step {state.global_step}\n"
                "    → lower training.learning_rate or the weights of the loss, or set training.bf16=false"
            )
        self.last_loss = loss
        if self._layers is not None:
            self._layers.watch()
        step, at = self._step_at
        now = time.monotonic()
        seconds = (now - at) / max(1, state.global_step - step)
        self._step_at = (state.global_step, now)
        self._reporter.metric(
            self._stage,
            step=state.global_step,
            epoch=round(float(logs.get("epoch", 0.0)), 4),
            loss=loss,
            learning_rate=logs.get("learning_rate"),
            grad_norm=norm,
            seconds_per_step=round(seconds, 4),
            **(self._figures() if self._figures else {}),
        )
        if self.phases is not None:
            self._reporter.metric("seconds", step=state.global_step, **self.phases.take())

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Every rank has written its part.
        wait_for_all()
        if not state.is_world_process_zero:
            return
        directory = Path(args.output_dir)
        mark_whole(directory / f"checkpoint-{state.global_step}", world_size(), strategy().name)
        rotate(directory, self._config.save_total_limit)
