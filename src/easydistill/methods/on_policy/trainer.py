"""On-policy distillation by sampled reverse KL: the student generates, and the teacher only scores the tokens.

For the student's own tokens y_t, with p_old the student that generated them (Thinking Machines, 2025; MiniLLM):

    A_t  = −(log p_old(y_t) − log p_T(y_t))                 the sampled reverse KL, as an advantage
    r_t  = p_S(y_t) / p_old(y_t)                            the importance ratio
    loss = −(1/N) Σ_t min(r_t A_t, clip(r_t, 1−ε, 1+ε) A_t)

and −(1/N) Σ_t log p_S(y_t) for tokens of the teacher's answers, if rollouts are mixed with those. N counts the tokens
of the whole optimiser step, including the token that ends an answer if it was generated. Tokens for which the teacher
gives no log-probability (a placeholder such as −9999, or nothing finite) are left out of the loss and of N.

The choice of sequences, rollouts and scoring are in `shared/rollouts.py`. `generalized_jsd.py` has the other objective
of this loop. Where teachers are several, each scores the sequences of its own rows (`own_teachers.py`).

Shapes: N tokens, R of them the student's own.
"""

from __future__ import annotations

import functools
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from easydistill.contracts.teacher import row_seed
from easydistill.data.numbers import usable_logprob
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import ConfigError, ConfigIssue, DataError, Interrupted, TeacherError
from easydistill.kernels.logprobs import completion_logprobs
from easydistill.methods.on_policy.alarms import Alarms
from easydistill.methods.on_policy.config import OnPolicyConfig
from easydistill.methods.on_policy.fit import Fit
from easydistill.methods.on_policy.own_teachers import by_name, each_by_its_own
from easydistill.methods.on_policy.schedule import Schedule
from easydistill.methods.on_policy.steps import steps_of
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.adapters import with_adapters
from easydistill.methods.shared.checkpoints import is_whole, last_whole_checkpoint, mark_whole, rotate, step_of
from easydistill.methods.shared.compat import check_head, uses_bf16
from easydistill.methods.shared.compiling import fast_matrix_products
from easydistill.methods.shared.phases import Phases
from easydistill.methods.shared.ranks import (
    check_ranks,
    from_all,
    from_first,
    numbers_of_share,
    raise_if_stopped,
    rank,
    sum_over_ranks,
    together,
    wait_for_all,
    world_size,
)
from easydistill.methods.shared.restored import kept_settings
from easydistill.methods.shared.rollouts import (
    ModelWriter,
    PromptOrder,
    PromptRow,
    TeacherScores,
    Writer,
    Written,
    assign,
    batch_rows,
    describe,
    rolled_positions,
    scored,
)
from easydistill.methods.shared.shown_images import check_images, sight_test
from easydistill.methods.shared.strategies.base import strategy
from easydistill.methods.shared.watch import TrainingOutcome, count_parameters, mean_figures
from easydistill.models.allocation import reused_memory
from easydistill.models.loading import device
from easydistill.models.rows_attention import rows_attention
from easydistill.models.student import Student

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

STATE = "state.pt"


# --- the loss ---------------------------------------------------------------------------------------------------


def sampled_reverse_kl(logprobs_N: Tensor, old_N: Tensor, teacher_N: Tensor, clip: float) -> Tensor:
    """−Σ min(r A, clip(r) A) over the student's own tokens, a scalar in nats.

    On the first step after a rollout (r = 1) its gradient is Σ (log p_S − log p_T) ∇ log p_S.
    """
    advantage_N = teacher_N - old_N
    ratio_N = (logprobs_N - old_N).exp()
    return -torch.minimum(ratio_N * advantage_N, ratio_N.clamp(1 - clip, 1 + clip) * advantage_N).sum()


# --- the loop ---------------------------------------------------------------------------------------------------


def train(
    student: Student,
    rows: Sequence[PromptRow],
    scores: TeacherScores | Mapping[str, TeacherScores],
    config: TrainingConfig,
    on_policy: OnPolicyConfig,
    checkpoints: Path,
    reporter: Reporter,
    stop: StopSignal,
    writer: Writer | None = None,
    vision: Vision | None = None,
) -> TrainingOutcome:
    """Train `student` in place by sampled reverse KL (float32 on the CPU when it enters).

    Resumes from the last complete checkpoint, with the same final weights as an uninterrupted run if the teacher's
    scores are reproducible (a model in this process; a server's rounding depends on its batches).

    Args:
        scores: the teacher, or by name those that rows are `taught_by`.
        writer: what generates the student's answers; by default the student, through transformers.
        vision: of a student that sees images.

    Raises:
        DataError: there are no rows, or the loss is not finite.
        Interrupted: `stop` was requested; the state is in a checkpoint.
        TeacherError: the teacher failed for good; the state is in a checkpoint.
    """
    return run_loop(
        lambda: SampledTraining(student, rows, scores, config, on_policy, checkpoints, reporter, writer, vision),
        student,
        rows,
        config,
        stop,
        vision,
    )


def run_loop(
    made: Callable[[], SampledTraining],
    student: Student,
    rows: Sequence[PromptRow],
    config: TrainingConfig,
    stop: StopSignal,
    vision: Vision | None = None,
) -> TrainingOutcome:
    """Train `student` in place by the loop that `made` gives.

    Args:
        vision: of a student that sees images.

    Raises:
        DataError, Interrupted, TeacherError: see `train`.
    """
    if not rows:
        raise DataError("there is nothing to train on: no prompt fits into training.max_length")
    if vision is not None:
        check_images(config, (row.images for row in rows))
    shown = sight_test(vision, [(row.prompt, row.images) for row in rows])
    strategy().decided(lambda: check_head(student.model, shown))
    on = device()
    with (
        kept_settings(student.model),
        rows_attention(),
        reused_memory(on),
        fast_matrix_products(on, uses_bf16(config, on)),
    ):
        loop = made()
        loop.run(stop)
    loop.steps.finish()
    outcome = loop.outcome()
    if config.lora is not None:
        student.model = loop.model.merge_and_unload()
    student.model.eval()
    return outcome


def _over_ranks(count: int) -> int:
    """The sum of all ranks' counts."""
    return int(sum_over_ranks(torch.tensor(count)))


def _share(count: int) -> slice:
    """This rank's part of a step's sequences, of which each rank has as many."""
    numbers = numbers_of_share(count // world_size())
    return slice(numbers.start, numbers.stop)


def _numbers(steps: Iterable[Sequence[Written]]) -> list[int]:
    """Which of all ranks' rollouts this rank's are, in the order of the steps."""
    found: list[int] = []
    before = 0
    for items in steps:
        share = _share(len(items))
        for at, item in enumerate(items):
            if item.rolled:
                found += [before] if share.start <= at < share.stop else []
                before += 1
    return found


def sequences_of(rollouts: Sequence[Written]) -> tuple[list[tuple[list[int], int]], list[list[tuple[str, ...]]]]:
    """(token ids, start) of each, and what follows them in a call of a scorer: the images of each, if any has some."""
    images = [item.images for item in rollouts]
    return [(item.ids, len(item.prompt)) for item in rollouts], [images] if any(images) else []


class SampledTraining:
    """The training loop: optimiser steps over rollouts, logging, checkpoints."""

    def __init__(
        self,
        student: Student,
        rows: Sequence[PromptRow],
        scores: TeacherScores | Mapping[str, TeacherScores],
        config: TrainingConfig,
        on_policy: OnPolicyConfig,
        checkpoints: Path,
        reporter: Reporter,
        writer: Writer | None = None,
        vision: Vision | None = None,
    ) -> None:
        self._student, self._rows, self._vision = student, rows, vision
        self._scores: Mapping[str, TeacherScores] = by_name(scores)
        self._config, self._on_policy = config, on_policy
        self._checkpoints, self._reporter = checkpoints, reporter
        self._writer = writer or ModelWriter(vision)
        self._device = device()
        self._order = PromptOrder(len(rows), batch_rows(config) * world_size(), config.seed)
        self.total = config.max_steps or math.ceil(config.num_train_epochs * self._order.steps)
        self.model = with_adapters(student.model, config)
        if config.gradient_checkpointing:
            student.model.gradient_checkpointing_enable()
        self.steps = steps_of(student.model, self.model, config, checkpoints, self.total)
        self._pad = min(student.eos_ids, default=0)
        self._step = self._resumed = self._tokens = 0
        self._pending: list[list[Written]] = []
        self._window: list[dict[str, float]] = []
        self._final_loss: float | None = None
        self._fit: Fit | None = None
        self._phases = Phases(self._device)
        self._alarms = Alarms(
            on_policy.temperature,
            on_policy.fits_beta,
            whole=on_policy.objective == "generalized_jsd",
            mixes=on_policy.kl_mix is not None,
        )
        self._schedule = Schedule(on_policy, self.total)
        if on_policy.kd_steps >= self.total:
            problem = f"{on_policy.kd_steps} steps come before rollouts, and the training has {self.total}"
            raise ConfigError(ConfigIssue("config", "on_policy.kd_steps", problem, "lower it, or train for longer"))
        # Parts of weights have no shape of their own, and all ranks must compute alike.
        self._flat = not strategy().shards

    def run(self, stop: StopSignal) -> None:
        self._load()
        since = (self._step, time.monotonic())
        self._phases.begin()
        with self._reporter.task("On-policy training", self.total, done=self._step, unit="steps") as task:
            while self._step < self.total:
                try:
                    raise_if_stopped(stop)
                    measured = {} if self._pending else self._fill_pending(stop)
                except (Interrupted, TeacherError):
                    self._save()
                    raise
                batch = self._pending.pop(0)
                with self._phases.during("update"):
                    measured |= self.update(batch)
                self._step += 1
                tokens = _over_ranks(sum(sum(item.learned) for item in batch))
                self._tokens += tokens
                self._window.append(measured)
                task.advance(tokens=tokens, note=f"loss {measured['loss']:.3f}")
                if self._step % self._config.logging_steps == 0 or self._step == self.total:
                    self._log((time.monotonic() - since[1]) / (self._step - since[0]))
                    since = (self._step, time.monotonic())
                if self._step % self._config.save_steps == 0 or self._step == self.total:
                    self._save()

    def _fill_pending(self, stop: StopSignal) -> dict[str, float]:
        """Fill `_pending` with the sequences of the next steps, scored by the teacher; returns their figures."""
        steps = self._schedule.round_from(self._step)
        everything = {step: self._assigned(step) for step in steps}
        written = {step: items[_share(len(items))] for step, items in everything.items()}
        asked = [item for step in steps for item in written[step] if item.rolled]
        if asked:
            with self._phases.during("weights"):
                self._writer.load(self._student.model)
        with self._phases.during("rollouts"), self.steps.whole() as model:
            rollouts, own = self._write(model, asked, _numbers(everything.values()))
        scored_rollouts, entropies = self._score(rollouts, own, stop)
        answers = iter(scored_rollouts)
        self._pending = [[next(answers) if item.rolled else item for item in written[step]] for step in steps]
        everyone = [item for part in from_all(scored_rollouts) for item in part]
        entropies = [value for part in from_all(entropies) for value in part]
        found = {**describe(everyone), **({"entropy": fmean(entropies)} if entropies else {})}
        if everyone and self._on_policy.max_new_tokens_start is not None:
            found["length_limit"] = self._schedule.longest(self._step)
        return found

    def _write(
        self, model: Any, asked: Sequence[Written], numbers: Sequence[int]
    ) -> tuple[list[Written], list[tuple[list[float], list[float]]]]:
        """The student's answers, and of each the (log p_old, entropy) of its tokens.

        Args:
            asked: sequences that are still empty.
        """
        # The estimate is of the student's own distribution, so sampling must not sharpen or flatten it.
        rollouts = self._generated(model, asked, numbers, temperature=1.0)
        images = [item.images for item in rollouts]
        written = [(item.ids, len(item.prompt)) for item in rollouts]
        model.eval()
        with self._phases.during("scores"), torch.no_grad(), self._autocast(cached=True):
            chunk = self._config.loss_chunk_bytes
            own = scored(model, written, self._pad, chunk, images, self._vision) if written else []
        return rollouts, own

    def _generated(
        self, model: Any, asked: Sequence[Written], numbers: Sequence[int], temperature: float
    ) -> list[Written]:
        """The student's answers to the prompts of sequences that are still empty."""
        with self._autocast(cached=True):
            written = self._writer.write(
                model,
                [(item.id, item.prompt) for item in asked],
                self._step,
                self._student.eos_ids,
                self._schedule.longest(self._step),
                temperature,
                self._config.seed,
                numbers,
                [item.images for item in asked],
            )
        return [replace(item, taught_by=row.taught_by) for item, row in zip(written, asked, strict=True)]

    def _assigned(self, step: int) -> list[Written]:
        """A step's sequences of all ranks; those that the student is to generate are still empty."""
        chosen = self._order.batches(step // self._order.steps)[step % self._order.steps]
        rolled = rolled_positions(self._schedule.rollout_share(step), step, len(chosen), self._config.seed)
        return [assign(self._rows[index], at in rolled) for at, index in enumerate(chosen)]

    def _score(
        self, rollouts: list[Written], own: Sequence[tuple[list[float], list[float]]], stop: StopSignal
    ) -> tuple[list[Written], list[float]]:
        """The rollouts with log p_old and log p_T of their tokens, and the student's entropy at each, in nats."""
        with self._phases.during("teacher"):
            given = together(lambda: self._given(rollouts, stop))
        usable = [[[usable_logprob(value) for value in row] for row in part] for part in given]
        by_teacher = usable[rank()]
        if any(usable) and all(math.isnan(value) for part in usable for row in part for value in row):
            raise TeacherError(
                "the teacher gives no usable log-probability: all are placeholders or not finite\n"
                "    → check the server with one request for prompt_logprobs, or load the teacher in float32"
            )
        found = [
            replace(item, old=old, teacher=teacher)
            for item, (old, _), teacher in zip(rollouts, own, by_teacher, strict=True)
        ]
        return found, [value for _, entropies in own for value in entropies]

    def _given(self, rollouts: Sequence[Written], stop: StopSignal) -> list[list[float]]:
        """The teacher's log-probabilities of rollouts, as it gives them."""

        def ask(name: str, part: list[Written]) -> list[list[float]]:
            asked, images = sequences_of(part)
            return self._scores[name].score(asked, stop, *images)

        return each_by_its_own(rollouts, ask)

    def update(self, batch: list[Written]) -> dict[str, float]:
        """Take one optimiser step; returns its figures."""
        self.model.train()
        # A step of one short answer may have no score at all; it then has no gradient.
        count = max(1, _over_ranks(sum(sum(item.learned) for item in batch)))
        batch = sorted(batch, key=lambda item: len(item.ids), reverse=True)
        size = self._config.per_device_train_batch_size
        total = 0.0
        # Dropout is seeded per step, so checkpoints need not store its random state.
        with torch.random.fork_rng():
            torch.manual_seed(row_seed(self._config.seed, f"{self._step}:dropout"))
            for at in range(0, len(batch), size):
                part = batch[at : at + size]
                self._before(part)
                loss = self.steps.forward(functools.partial(self._loss, part)) / count
                self.steps.backward(loss, last=at + size >= len(batch))
                total += float(loss.detach())
        total = float(sum_over_ranks(torch.tensor(total, dtype=torch.float64)))
        if not math.isfinite(total):
            raise DataError(
                f"the training loss is {total} at step {self._step + 1}\n"
                "    → lower training.learning_rate, or set training.bf16=false"
            )
        rate = self.steps.learning_rate
        return {"loss": total, "grad_norm": self.steps.update(), "learning_rate": rate, **self._figures()}

    def _before(self, part: list[Written]) -> None:
        """What a micro-batch needs beside the student."""

    def _figures(self) -> dict[str, float]:
        """What the losses of the step have told of its rollouts, of all ranks."""
        return {}

    def _loss(self, part: list[Written]) -> Tensor:
        """The summed loss of a micro-batch."""
        asked, images = self._shown(part)
        with self._autocast():
            logprobs_N, _ = completion_logprobs(
                self._student.model,
                asked,
                self._pad,
                self._config.loss_chunk_bytes,
                flat=self._flat,
                vision=self._vision,
                images=images,
            )
        on = logprobs_N.device
        rolled_N = torch.tensor([item.rolled for item in part for _ in item.completion], device=on)
        learned_N = torch.tensor([value for item in part for value in item.learned], device=on)
        old_R, teacher_R = (
            torch.tensor([value for item in part for value in getattr(item, name) or ()], device=on)
            for name in ("old", "teacher")
        )
        cross_entropy = -logprobs_N[~rolled_N].sum()
        kept_R, own_N = learned_N[rolled_N], logprobs_N[rolled_N & learned_N]
        return cross_entropy + sampled_reverse_kl(own_N, old_R[kept_R], teacher_R[kept_R], self._on_policy.ratio_clip)

    def _shown(self, part: list[Written]) -> tuple[list[tuple[list[int], int]], list[tuple[str, ...]]]:
        """A micro-batch as (token ids, start), and the images of each; with the companion where it has none."""
        asked, images = [(item.ids, len(item.prompt)) for item in part], [item.images for item in part]
        if self._companion is not None and not any(images):
            asked.append((self._companion.prompt, len(self._companion.prompt)))
            images.append(self._companion.images)
        return asked, images

    @functools.cached_property
    def _companion(self) -> PromptRow | None:
        """A short row with an image, which goes with batches of text alone, and of which nothing is learned. Where
        several processes train, all use the same parts of the student in every step; where the language model is not
        trained, a loss of text alone has no gradient."""
        wanted = world_size() > 1 or not self._config.learns_of_text
        rows = (row for row in self._rows if row.images) if wanted else iter(())
        return min(rows, key=lambda row: len(row.prompt), default=None)

    def _autocast(self, *, cached: bool | None = None) -> Any:
        """
        Args:
            cached: whether weights that were cast are kept for the context; by default as the strategy says.
        """
        enabled = uses_bf16(self._config, self._device)
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=cached)

    def _log(self, seconds: float) -> None:
        """Log means since the last entry: the training figures, and those of the rollouts."""
        means = mean_figures(self._window)
        training = {name: means.pop(name) for name in ("loss", "grad_norm")}
        self._final_loss = training["loss"]
        means.pop("learning_rate")
        self._reporter.metric(
            "train",
            step=self._step,
            epoch=round(self._step / self._order.steps, 4),
            learning_rate=self._window[-1]["learning_rate"],
            seconds_per_step=round(seconds, 4),
            **training,
        )
        if means:
            self._reporter.metric("rollouts", step=self._step, **means)
            # Longer answers repeat more and end more often, whatever the student is like.
            oldest = self._step - len(self._window) - self._on_policy.steps_per_rollout + 1
            grown = self._schedule.longest(oldest) == self._on_policy.max_new_tokens
            for sentence in self._alarms.step(self._step, means, comparable=grown):
                self._reporter.say(f"  alarm at step {self._step}: {sentence}")
        self._reporter.metric("seconds", step=self._step, **self._phases.take())
        self._window = []

    # --- checkpoints --------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Save the state after `_step` steps; the marker is written last, then old checkpoints are removed."""
        target = self._checkpoints / f"checkpoint-{self._step}"
        pending = from_all([[asdict(item) for item in batch] for batch in self._pending])
        if from_first(self._step == self._resumed or is_whole(target)):
            return
        if rank() == 0:
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
        wait_for_all()
        self.steps.save_parts(target)
        if rank() == 0:
            self._write_state(target, pending)
        wait_for_all()
        if rank() == 0:
            mark_whole(target, world_size(), strategy().name)
            rotate(self._checkpoints, self._config.save_total_limit)
        wait_for_all()

    def _write_state(self, target: Path, pending: list[Any]) -> None:
        """Write the first rank's file of a checkpoint; `pending` is each rank's."""
        state = {
            **self.steps.state(),
            "pending": pending[0] if world_size() == 1 else pending,
            "window": self._window,
            "tokens": self._tokens,
            "final_loss": self._final_loss,
            "alarms": self._alarms.state(),
            "fit": None if self._fit is None else asdict(self._fit),
        }
        torch.save(state, target / STATE)

    def _load(self) -> None:
        found = last_whole_checkpoint(self._checkpoints)
        if found is None:
            return
        if not from_first((found / STATE).is_file()):
            self._reporter.say("  note: checkpoints of an earlier version cannot be continued; this part starts anew")
            wait_for_all()
            if rank() == 0:
                shutil.rmtree(self._checkpoints)
            wait_for_all()
            return
        check_ranks(found)
        state = torch.load(found / STATE, map_location="cpu", weights_only=True)
        self.steps.load(found, state)
        pending = state["pending"] if world_size() == 1 else state["pending"][rank()]
        self._pending = [[Written(**item) for item in batch] for batch in pending]
        self._window, self._tokens, self._final_loss = state["window"], state["tokens"], state["final_loss"]
        if "alarms" in state:
            self._alarms.restore(state["alarms"])
        if "fit" in state and state["fit"] is not None:
            self._fit = Fit(**state["fit"])
        self._step = self._resumed = step_of(found)

    def outcome(self) -> TrainingOutcome:
        parameters, trainable = count_parameters(self.model)
        return TrainingOutcome(
            steps=self._step,
            final_loss=self._final_loss,
            trained_tokens=self._tokens,
            parameters=parameters,
            trainable_parameters=trainable,
            resumed_from_step=self._resumed,
            alarms=self._alarms.raised,
            fit={} if self._fit is None else asdict(self._fit),
        )
