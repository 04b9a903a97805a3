"""Training of a reward model with TRL's RewardTrainer, and every override of its internals.

    loss = −log σ(r_w − r_l − m) + c (r_w + r_l)²,   a mean over pairs

with c the centring coefficient (arXiv 2312.09244) and m the pair's margin, 0 unless `use_margin` is set. The loss is
TRL's. Ours are the tokenisation, the padding token, the order of pairs, complete checkpoints, Ctrl-C.

Written against TRL 1.16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerControl, TrainerState

from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import ConfigError, ConfigIssue, DataError, MissingExtra
from easydistill.methods.reward_model.config import RewardModelConfig, RewardTrainingConfig
from easydistill.methods.reward_model.rows import RewardRow
from easydistill.methods.shared.adapters import check_linear, lora_config, parts_to_train
from easydistill.methods.shared.checkpoints import last_whole_checkpoint
from easydistill.methods.shared.compat import argument_values, importing_trl
from easydistill.methods.shared.pair_images import PairImages, accompanied
from easydistill.methods.shared.ranks import check_ranks, world_size
from easydistill.methods.shared.strategies.base import strategy
from easydistill.methods.shared.trl_parts import PairsTrainer
from easydistill.methods.shared.watch import TrainingOutcome, Watch, run_trainer, training_outcome
from easydistill.models.loading import device
from easydistill.models.multimodal.parts import freeze_others, modules_outside
from easydistill.models.scalar_head import head_name
from easydistill.models.student import Student

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

try:
    with importing_trl():
        from datasets import Dataset
        from trl import RewardConfig, RewardTrainer
        from trl.trainer.reward_trainer import DataCollatorForPreference
except ImportError:
    raise MissingExtra("trl", "Training a reward model") from None

_KEPT = {
    "accuracy": "pair_accuracy",
    "margin": "score_margin",
    "mean_reward": "mean_score",
    "min_reward": "lowest_score",
    "max_reward": "highest_score",
}
"""TRL's figures to log, and our names for them."""


def train(
    student: Student,
    rows: Sequence[RewardRow],
    config: RewardTrainingConfig,
    reward: RewardModelConfig,
    checkpoints: Path,
    reporter: Reporter,
    stop: StopSignal,
    vision: Vision | None = None,
) -> TrainingOutcome:
    """Train `student` in place; with LoRA, its head is trained fully and the adapters are merged at the end.

    Resumes from the last complete checkpoint. Returns early, after a checkpoint, once `stop` is requested.

    Args:
        student: in float32 on the CPU, with a scalar head and its padding set (`models/scalar_head.py`).
        vision: of a student that sees images.

    Raises:
        DataError: there are no pairs, or the loss is not finite.
    """
    if not rows:
        raise DataError("there is nothing to train on: no pair fits into training.max_length")
    resume = last_whole_checkpoint(checkpoints)
    if resume is not None:
        check_ranks(resume)
    with ScoreWatch(reporter, stop, config) as watch:
        trainer = ScoreTrainer(student, rows, config, reward, checkpoints, watch, vision)
        run_trainer(trainer, resume)
    strategy().whole(trainer, trainer.model)
    outcome = training_outcome(trainer.state, trainer.model, sum(sum(row.answer_tokens) for row in rows), resume)
    # Accelerate leaves a bfloat16 forward on the instance; later users choose their own precision.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    student.model = model.merge_and_unload() if config.lora is not None else model
    student.model.eval()
    return outcome


def arguments(config: RewardTrainingConfig, reward: RewardModelConfig, checkpoints: Path) -> RewardConfig:
    """TRL's arguments, with our values wherever transformers has the same argument."""
    return RewardConfig(
        **argument_values(config, checkpoints, device()),
        max_length=config.max_length,
        center_rewards_coefficient=reward.center_rewards_coefficient or None,
    )


def adapters(model: Any, config: RewardTrainingConfig) -> Any:
    """PEFT's config of the adapters; None without `training.lora`. The head is trained fully in any case.

    Of a model that sees images, only parts that are trained get adapters; without any, the others are frozen.

    Raises:
        ConfigError: the head would get adapters; or a model of text is to be trained in parts that it lacks.
    """
    head = head_name(model)
    parts = parts_to_train(model, config)
    if config.lora is None:
        if parts is not None:
            freeze_others(model, parts)
            getattr(model, head).requires_grad_(True)
        return None
    if head in config.lora.target_modules:
        problem = f"{head} is the reward model's head, which is trained fully"
        hint = f'remove "{head}", or use "all-linear", which leaves that layer out'
        raise ConfigError(ConfigIssue("config", "training.lora.target_modules", problem, hint))
    if parts is None:
        return lora_config(config.lora, "SEQ_CLS", modules_to_save=[head])
    outside = [name for name in modules_outside(model, parts) if name != head]
    check_linear(model, [*outside, head], parts)
    return lora_config(config.lora, "SEQ_CLS", modules_to_save=[head], exclude_modules=outside)


class ScoreWatch(Watch):
    """Also logs the scores of the pairs since the last entry."""

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        super().on_log(args, state, control, logs, **kwargs)
        if logs and "loss" in logs:
            found = {ours: logs[theirs] for theirs, ours in _KEPT.items() if theirs in logs}
            self._reporter.metric("reward_model", step=state.global_step, **found)


@dataclasses.dataclass
class ScoreCollator(DataCollatorForPreference):
    """TRL's batches, with what a student that sees images is given.

    Args:
        images: makes that; None for a model of text.
    """

    images: PairImages | None = None

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = super().torch_call(examples)
        if self.images is not None:
            found |= self.images.inputs(found["input_ids"], [example["pair"] for example in examples])
        return found


class ScoreTrainer(PairsTrainer, RewardTrainer):
    """TRL's trainer on tokenised pairs."""

    averages = True

    def __init__(
        self,
        student: Student,
        rows: Sequence[RewardRow],
        config: RewardTrainingConfig,
        reward: RewardModelConfig,
        checkpoints: Path,
        watch: Watch,
        vision: Vision | None = None,
    ) -> None:
        self._pairs, self._config, self._pad = rows, config, student.tokenizer.pad_token_id
        images = None if vision is None else PairImages(vision, rows, world_size())
        super().__init__(
            model=student.model,
            args=arguments(config, reward, checkpoints),
            train_dataset=Dataset.from_list(
                [
                    {
                        "chosen_ids": row.chosen,
                        "rejected_ids": row.rejected,
                        "pair": number,
                        **({"margin": row.margin} if reward.use_margin else {}),
                    }
                    for number, row in enumerate(rows)
                ]
            ),
            data_collator=ScoreCollator(pad_token_id=self._pad, images=images),
            processing_class=student.tokenizer,
            peft_config=adapters(student.model, config),
            callbacks=[watch],
        )
        self._share_pairs()

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Keep `margin` from the model, which some architectures refuse."""

        called = accompanied(model, self._pad)

        def without_margins(**values: Any) -> Any:
            return called(**{name: value for name, value in values.items() if name != "margin"})

        return super().compute_loss(without_margins, inputs, *args, **kwargs)
