"""Training on rows of tokens: supervised fine-tuning, and distillation from stored signals.

    loss = (1/N) Σ_n loss_n,   N = answer tokens of the optimiser step

where loss_n is −log p_student(answer token n | what precedes it), or what `methods/distil/trainer.py` makes of it and
the teacher's signal. What enters: token rows and a student. What leaves: the student, trained in place. Weights and
optimiser are float32; the computation is bfloat16 where the device does that well.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState

from easydistill.config.training import TrainerConfig
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter, Task
from easydistill.errors import ConfigError, ConfigIssue, DataError
from easydistill.methods.distil.trainer import Distillation
from easydistill.methods.sft.batching import IGNORE, RowDataset, TokenRow, collate, epoch_sampler, pack
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.checkpoints import last_whole_checkpoint, mark_whole, rotate, step_of
from easydistill.methods.shared.compat import (
    FusedTrainer,
    check_head,
    cross_entropy_loss,
    fuse_loss,
    training_arguments,
    unfuse_loss,
)
from easydistill.models.loading import device
from easydistill.models.student import Student


@dataclass(frozen=True)
class TrainingOutcome:
    """Figures of a finished training."""

    steps: int
    final_loss: float | None
    trained_tokens: int
    parameters: int
    trainable_parameters: int
    resumed_from_step: int


def train(
    student: Student,
    rows: Sequence[TokenRow],
    config: TrainingConfig,
    checkpoints: Path,
    reporter: Reporter,
    stop: StopSignal,
    distillation: Distillation | None = None,
    stage: str = "train",
) -> TrainingOutcome:
    """Train `student` in place (float32 on the CPU when it enters); with LoRA its adapters are merged at the end.

    Goes on from the last whole checkpoint in `checkpoints`, with the same final weights as without a break. Returns
    early, after a checkpoint, once `stop` is requested.

    Args:
        stage: whose steps these are in `metrics.jsonl`; the report draws the curve of `train`.

    Raises:
        DataError: there are no rows, or training gave a loss that is not finite.
    """
    if not rows:
        raise DataError("there is nothing to train on: no row has an answer token within training.max_length")
    on = device()
    items = pack(rows, config.max_length) if config.packing else [[row] for row in rows]
    dataset = RowDataset(items)
    sampler = epoch_sampler(dataset.lengths(), config, grouped=config.group_by_length and not config.packing)
    check_head(student.model)
    fuse_loss(student.model, distillation.row_loss if distillation else cross_entropy_loss(config.loss_chunk_bytes))
    model = with_adapters(student.model, config)
    arguments = training_arguments(config, checkpoints, on)
    resume = last_whole_checkpoint(checkpoints)
    pad = student.tokenizer.pad_token_id
    pad_id = pad if pad is not None else min(student.eos_ids, default=0)

    def batch_of(items: list[list[TokenRow]]) -> dict[str, Any]:
        extra = distillation.collate([row for item in items for row in item]) if distillation else {}
        return {**collate(items, pad_id), **extra}

    with Watch(reporter, stop, config, distillation, stage) as callback:
        trainer = FusedTrainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            data_collator=batch_of,
            callbacks=[callback],
            sampler=sampler,
        )
        trainer.remove_callback(PrinterCallback)
        with contextlib.suppress(AllStepsDone):
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    trained_tokens = sum(sum(label != IGNORE for label in row.labels()) for row in rows)
    outcome = outcome_of(trainer.state, model, trained_tokens, resume)
    # PEFT's merge calls nothing of forward, but whoever gets the model next expects logits from it.
    unfuse_loss(student.model)
    if config.lora is not None:
        student.model = model.merge_and_unload()
    student.model.eval()
    return outcome


def outcome_of(state: TrainerState, model: Any, trained_tokens: int, resume: Path | None) -> TrainingOutcome:
    """Figures of a training by transformers' Trainer or one made of it.

    Args:
        model: as it was trained, its adapters not merged yet.
        resume: the checkpoint that it went on from.
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


def count_parameters(model: Any) -> tuple[int, int]:
    """How many parameters a model has, and how many of them are trained."""
    sizes = [(value.numel(), value.requires_grad) for value in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def with_adapters(model: Any, config: TrainerConfig) -> Any:
    """`model` with new low-rank adapters, drawn from the seed, where the config asks for them; else as it is.

    Raises:
        ConfigError: the output layer is to have adapters.
    """
    wanted = adapters(model, config)
    if wanted is None:
        return model
    import peft
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        adapted = peft.get_peft_model(model, wanted)
    if config.gradient_checkpointing:
        adapted.enable_input_require_grads()
    return adapted


def adapters(model: Any, config: TrainerConfig) -> Any:
    """What PEFT is told of the adapters that the config asks for; None where it asks for none.

    Raises:
        ConfigError: the output layer is to have adapters.
    """
    if config.lora is None:
        return None
    import peft

    _check_targets(model, config.lora.target_modules)
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=config.lora.target_modules,
    )


def _check_targets(model: Any, targets: Sequence[str]) -> None:
    """Make sure that no adapter goes on the output layer, or on embeddings whose weights that shares.

    Losses multiply with the layer's weight, slice by slice, and go round its forward: adapters would stay untrained.
    """
    if targets == "all-linear":
        return
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    used = [head, embeddings] if head.weight is embeddings.weight else [head]
    names = [name for name, module in model.named_modules() if any(module is layer for layer in used)]
    for target in targets:
        if any(f".{name}".endswith(f".{target}") for name in names):
            problem = f"adapters on {target}, the output layer, would not be trained"
            mend = f'remove "{target}", or use "all-linear", which leaves that layer out'
            raise ConfigError(ConfigIssue("config", "training.lora.target_modules", problem, mend))


class AllStepsDone(Exception):
    """The checkpoint that training goes on from is its end: weights and state are loaded, and nothing is left to do.

    transformers' Trainer looks for the end after a step, so it would take one too many where the last step is in the
    middle of an epoch.
    """


class Watch(TrainerCallback):
    """Progress, metrics, whole checkpoints, and the user's wish to stop."""

    def __init__(
        self,
        reporter: Reporter,
        stop: StopSignal,
        config: TrainerConfig,
        distillation: Distillation | None = None,
        stage: str = "train",
    ) -> None:
        self._reporter = reporter
        self._distillation = distillation
        self._stop = stop
        self._config = config
        self._stage = stage
        self._task: Task | None = None
        self._context: Any = None
        self._step_at = (0, time.monotonic())
        self.last_loss: float | None = None

    def __enter__(self) -> Watch:
        return self

    def task(self, label: str, total: int, done: int) -> contextlib.AbstractContextManager[Task]:
        """Progress of what comes before the first step."""
        return self._reporter.task(label, total, done=done, unit="rows")

    def __exit__(self, *exception: Any) -> None:
        if self._context is not None:
            self._context.__exit__(*exception)
            self._context = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._context = self._reporter.task("Training", state.max_steps, done=state.global_step, unit="steps")
        self._task = self._context.__enter__()
        self._step_at = (state.global_step, time.monotonic())
        if state.global_step >= state.max_steps:
            raise AllStepsDone

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        if self._task is not None:
            self._task.advance(note=f"loss {self.last_loss:.3f}" if self.last_loss is not None else None)
        if self._stop.requested:
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
            # Clipping by it has made nothing, or nonsense, of the gradient.
            raise DataError(
                f"the norm of the gradient is {norm} at step {state.global_step}\n"
                "    → lower training.learning_rate or whatever multiplies the loss, or set training.bf16=false"
            )
        self.last_loss = loss
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
            **(self._distillation.means() if self._distillation else {}),
        )

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        directory = Path(args.output_dir)
        mark_whole(directory / f"checkpoint-{state.global_step}")
        rotate(directory, self._config.save_total_limit)
