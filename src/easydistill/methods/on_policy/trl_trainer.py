"""On-policy distillation by generalised JSD with TRL's DistillationTrainer, and every override of its internals.

    loss = (1/N) Σ_t β KL(p_T ‖ m) + (1−β) KL(p_S ‖ m),   m = β p_T + (1−β) p_S        (GKD, arXiv 2306.13649)

with forward KL at β = 0 and reverse KL at β = 1; both distributions at `temperature`, N the completion tokens of the
optimiser step. TRL computes it over the whole vocabulary, slice by slice. Ours: which sequences the student generates
and which are the teacher's answers, a seed for each row, the order of rows, complete checkpoints, Ctrl-C.

Written against TRL 1.16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainerControl, TrainerState

from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import DataError, MissingExtra
from easydistill.kernels.logprobs import target_logprobs
from easydistill.methods.on_policy.config import OnPolicyConfig
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.adapters import with_adapters
from easydistill.methods.shared.checkpoints import last_whole_checkpoint
from easydistill.methods.shared.compat import argument_values, check_head, importing_trl
from easydistill.methods.shared.phases import Phases
from easydistill.methods.shared.ranks import check_ranks, from_all, numbers_of_share, sum_over_ranks, world_size
from easydistill.methods.shared.restored import kept_settings
from easydistill.methods.shared.rollouts import (
    BATCH_TOKENS,
    ModelWriter,
    PromptOrder,
    PromptRow,
    Writer,
    Written,
    assign,
    batch_rows,
    describe,
    rolled_positions,
)
from easydistill.methods.shared.shown_images import ShownImages, sight_test
from easydistill.methods.shared.strategies.base import strategy
from easydistill.methods.shared.trl_parts import WritingTrainer, uneven_ranks
from easydistill.methods.shared.watch import TrainingOutcome, Watch, mean_figures, run_trainer, training_outcome
from easydistill.models.head import Head, body_of, rows_per_chunk
from easydistill.models.loading import device, with_padding
from easydistill.models.student import Student
from easydistill.teachers.transformers import MAX_BATCH_ROWS

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

try:
    with importing_trl():
        from trl import DistillationConfig, DistillationTrainer
except ImportError:
    raise MissingExtra("trl", "Generalised JSD") from None


TEACHER_READ = "teacher_hidden"
"""Of a step's sequences, the teacher's last hidden states, beside their tokens."""
ROW = "row"
"""Of a step's sequences, their numbers in the step, where the student sees images."""


def train(
    student: Student,
    rows: Sequence[PromptRow],
    teacher: Any,
    config: TrainingConfig,
    on_policy: OnPolicyConfig,
    checkpoints: Path,
    reporter: Reporter,
    stop: StopSignal,
    writer: Writer | None = None,
    visions: tuple[Vision | None, Vision | None] = (None, None),
) -> TrainingOutcome:
    """Train `student` in place (float32 on the CPU when it enters) towards `teacher`, which has its vocabulary.

    Resumes from the last complete checkpoint. Returns early, after a checkpoint, once `stop` is requested.

    Args:
        writer: what generates the student's answers; by default the student, through transformers.
        visions: of a student and a teacher that see images.

    Raises:
        DataError: there are no rows, or the loss is not finite.
    """
    if not rows:
        raise DataError("there is nothing to train on: no prompt fits into training.max_length")
    shown = [(row.prompt, row.images) for row in rows]
    strategy().decided(lambda: check_head(student.model, sight_test(visions[0], shown)))
    check_head(teacher, sight_test(visions[1], shown))
    resume = last_whole_checkpoint(checkpoints)
    if resume is not None:
        check_ranks(resume)
    model = with_adapters(student.model, config)
    watch = RolloutWatch(reporter, stop, config)
    with watch, kept_settings(student.model):
        trainer = RolloutTrainer(model, student, rows, teacher, config, on_policy, checkpoints, watch, writer, visions)
        run_trainer(trainer, resume)
    strategy().whole(trainer, model)
    outcome = training_outcome(trainer.state, model, int(trainer.state.num_input_tokens_seen), resume)
    if config.lora is not None:
        student.model = model.merge_and_unload()
    student.model.eval()
    return outcome


def _arguments(config: TrainingConfig, on_policy: OnPolicyConfig, checkpoints: Path) -> DistillationConfig:
    """TRL's arguments, with our values wherever transformers has the same argument."""
    return DistillationConfig(
        **argument_values(config, checkpoints, device()),
        beta=on_policy.beta,
        temperature=on_policy.temperature,
        max_completion_length=on_policy.max_new_tokens,
    )


class _Rows(Dataset[dict[str, int]]):
    """Row indices in place of prompts; the trainer looks the rows up."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"prompt": index}


class RolloutWatch(Watch):
    """Also logs figures of the rollouts since the last entry."""

    def __init__(self, reporter: Reporter, stop: StopSignal, config: TrainingConfig) -> None:
        super().__init__(reporter, stop, config)
        self.described: list[dict[str, float]] = []

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        super().on_log(args, state, control, logs, **kwargs)
        if logs and "loss" in logs and self.described:
            # TRL's entropy is the mean over all sequences of the step, including the teacher's answers.
            means = mean_figures(self.described) | {"entropy": logs["entropy"]}
            self._reporter.metric("rollouts", step=state.global_step, **means)
            self.described = []


class RolloutTrainer(WritingTrainer, DistillationTrainer):
    """TRL's trainer, with our sequences in place of those that it would generate."""

    _config: TrainingConfig

    def __init__(
        self,
        model: Any,
        student: Student,
        rows: Sequence[PromptRow],
        teacher: Any,
        config: TrainingConfig,
        on_policy: OnPolicyConfig,
        checkpoints: Path,
        watch: RolloutWatch,
        writer: Writer | None = None,
        visions: tuple[Vision | None, Vision | None] = (None, None),
    ) -> None:
        self._rows, self._config, self._on_policy, self._student = rows, config, on_policy, student
        self._watch, self._writer = watch, writer or ModelWriter(visions[0])
        self.phases = watch.phases = Phases(device())
        self._sequences: list[Written] = []
        self._numbers: list[int] = []
        self._rolls = False
        self._gap = (0.0, 0)
        self._hidden: list[Tensor] = []
        self._teacher_read: Tensor | None = None
        self._shown: list[int] = []
        super().__init__(
            model=model,
            args=_arguments(config, on_policy, checkpoints),
            train_dataset=_Rows(len(rows)),
            processing_class=with_padding(student.tokenizer, student.limits.tokens),
            callbacks=[watch],
        )
        pairs = [(row.prompt, row.images) for row in rows]
        padding = self.processing_class.pad_token_id
        self._students_images, self._teachers_images = (
            None if vision is None else ShownImages(vision, pairs, padding) for vision in visions
        )
        # Whole in each process, which reads its answers in as many passes as they need; TRL lets DeepSpeed part it.
        self.teacher_model = self.accelerator.prepare_model(strategy().beside(teacher), evaluation_mode=True)

    def _order(self) -> Any:
        """Ours, because TRL's generator advances with every epoch and restarts in a resumed run."""
        size = batch_rows(self._config) * world_size()
        return PromptOrder(len(self._rows), size, self._config.seed, self._config.gradient_accumulation_steps)

    def _tokenize_prompts(self, prompts: list[int]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Token ids of rows given by index; also decides which of them the student answers."""
        rolled = rolled_positions(
            self._on_policy.rollout_share, self.state.global_step, len(prompts) * world_size(), self._config.seed
        )
        numbers = numbers_of_share(len(prompts))
        self._sequences = [assign(self._rows[index], at in rolled) for at, index in zip(numbers, prompts, strict=True)]
        self._rolls = bool(rolled)
        # Of the sequences that the student writes.
        self._numbers = [before for before, at in enumerate(sorted(rolled)) if at in numbers]
        return [item.prompt for item in self._sequences], None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any, has_tool_images: bool = False
    ) -> list[list[int]]:
        """Completions, end token included: the student's rollouts and the teacher's answers."""
        rolled = [item for item in self._sequences if item.rolled]
        rollouts: list[Written] = []
        # A rank without any still has a part of the weights.
        if self._rolls:
            with self.phases.during("weights"):
                self._writer.load(self.accelerator.unwrap_model(self.model))
            with self.phases.during("rollouts"), self._generating() as model:
                rollouts = self._writer.write(
                    model,
                    [(item.id, item.prompt) for item in rolled],
                    self.state.global_step,
                    self._student.eos_ids,
                    self._on_policy.max_new_tokens,
                    self._on_policy.temperature,
                    self._config.seed,
                    self._numbers,
                    [item.images for item in rolled],
                )
        if everyone := [item for part in from_all(rollouts) for item in part]:
            self._watch.described.append(describe(everyone))
        answers = iter(rollouts)
        return [next(answers).completion if item.rolled else item.completion for item in self._sequences]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Also record which sequences the student generated, because TRL shuffles them next."""
        with self.phases.during("scores"):
            found: dict[str, Any] = super()._generate_and_score_completions(inputs)
        rolled = [item.rolled for item in self._sequences]
        with self.phases.during("teacher"):
            hidden_BTD = self._read_by_teacher(found)
        on = self.accelerator.device
        found |= {"rolled": torch.tensor(rolled, device=on), TEACHER_READ: hidden_BTD}
        if self._students_images is not None:
            found[ROW] = torch.arange(len(rolled), device=on)
        return found

    @torch.no_grad()
    def _read_by_teacher(self, found: dict[str, Any]) -> Tensor:
        """The teacher's hidden states of the step's answers: more rows at once than a micro-batch has."""
        ids_BL = torch.cat([found["prompt_ids"], found["completion_ids"]], dim=1)
        mask_BL = torch.cat([found["prompt_mask"], found["completion_mask"]], dim=1)
        size = min(MAX_BATCH_ROWS, max(self._config.per_device_train_batch_size, BATCH_TOKENS // ids_BL.shape[1]))
        teacher = self.accelerator.unwrap_model(self.teacher_model.eval())
        tokens = found["completion_ids"].shape[1]
        parts = []
        with self._autocast():
            for at in range(0, len(ids_BL), size):
                self._shown = list(range(at, min(at + size, len(ids_BL))))
                given = (self._teachers_images, teacher, ids_BL[at : at + size], mask_BL[at : at + size], tokens)
                parts.append(self._forward_redirection(self.teacher_model, teacher, self._read, *given))
        return torch.cat(parts)

    def _get_last_hidden_state(self, unwrapped_model: Any, *args: Any, **kwargs: Any) -> Tensor:
        if self._teacher_read is not None and unwrapped_model is self.accelerator.unwrap_model(self.teacher_model):
            hidden_BTD = self._teacher_read
        else:
            hidden_BTD = self._read(self._students_images, unwrapped_model, *args, **kwargs)
        self._hidden.append(hidden_BTD.detach())
        return hidden_BTD

    def _read(self, images: ShownImages | None, model: Any, ids_BL: Tensor, mask_BL: Tensor, tokens: int) -> Tensor:
        """The hidden states that predict the last `tokens` tokens, of the sequences that are shown now."""
        if images is None:
            found: Tensor = super()._get_last_hidden_state(model, ids_BL, mask_BL, tokens)
            return found
        bare = model.get_base_model() if hasattr(model, "get_base_model") else model
        chosen = [self._sequences[at] for at in self._shown]
        shown = images.batch(ids_BL, mask_BL, [(item.prompt, item.images) for item in chosen], bare)
        out = body_of(bare)(input_ids=shown.ids_BL, attention_mask=shown.mask_BL, use_cache=False, **shown.seen)
        hidden_BTD: Tensor = out.last_hidden_state[: len(ids_BL), -tokens - 1 : -1]
        return hidden_BTD

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's, with the entropy of a last batch over all ranks: accelerate would leave some of them out."""
        if world_size() == 1:
            return super().compute_loss(*args, **kwargs)
        with uneven_ranks(self, 1, means=False):
            return super().compute_loss(*args, **kwargs)

    def _compute_loss(self, unwrapped_student: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> Any:
        """On steps that are logged, also estimate the reverse KL from the student's own tokens."""
        self._hidden, self._teacher_read = [], inputs[TEACHER_READ]
        self._shown = inputs[ROW].tolist() if ROW in inputs else []
        found = super()._compute_loss(unwrapped_student, inputs, num_items_in_batch)
        if (self.state.global_step + 1) % self._config.logging_steps == 0:
            keep_BT = inputs["completion_mask"].bool() & inputs["rolled"][:, None]
            self._add_reverse_kl(unwrapped_student, inputs["completion_ids"], keep_BT)
        self._hidden, self._teacher_read = [], None
        return found

    @torch.no_grad()
    def _add_reverse_kl(self, unwrapped_student: Any, ids_BT: Tensor, keep_BT: Tensor) -> None:
        """Log the mean of log p_S − log p_T at temperature 1 over a step's own tokens, with its last micro-batch.

        From the hidden states that the loss has computed.
        """
        count = int(sum_over_ranks(keep_BT.sum()))
        gap = float(sum_over_ranks(self._gaps(unwrapped_student, ids_BT, keep_BT).sum())) if count else 0.0
        self._gap = (self._gap[0] + gap, self._gap[1] + count)
        if (self._step + 1) % self.args.gradient_accumulation_steps == 0:
            gap, count = self._gap
            self._watch.described += [{"reverse_kl": gap / count}] if count else []
            self._gap = (0.0, 0)

    def _gaps(self, unwrapped_student: Any, ids_BT: Tensor, keep_BT: Tensor) -> Tensor:
        """log p_S − log p_T of each of this rank's own tokens."""
        heads = [Head.of(model) for model in (unwrapped_student, self.accelerator.unwrap_model(self.teacher_model))]
        step = rows_per_chunk(heads[0].weight_VD.shape[0], self._config.loss_chunk_bytes, ids_BT.device)
        target_N = ids_BT[keep_BT]
        student_N, teacher_N = (
            torch.cat(
                [
                    target_logprobs(hidden_BTD[keep_BT][at : at + step], head, target_N[at : at + step])[0]
                    for at in range(0, len(target_N), step)
                ]
                or [torch.zeros(0, device=ids_BT.device)]
            )
            for head, hidden_BTD in zip(heads, self._hidden, strict=True)
        )
        return student_N - teacher_N
