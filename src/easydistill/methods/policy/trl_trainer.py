"""GRPO on TRL's GRPOTrainer, and every override of its inside that PPO (`ppo_trl.py`) shares.

Ours: prompts as the house renders them, answers drawn from (seed, step, row), the order of prompts, rewards from the
registry, held-out measurements and alarms, whole checkpoints at the ends of rounds, Ctrl-C. A round is the answers of
one generation; a resumed run begins at the start of one, with the same weights at the end as without a break.

Written against TRL 1.16.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerControl, TrainerState

from easydistill.config.training import TrainerConfig
from easydistill.contracts.reward import Reward
from easydistill.data.journal import Journal
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import DataError, Interrupted, MissingExtra, TeacherError
from easydistill.methods.on_policy.trainer import kept_settings
from easydistill.methods.policy.config import GrpoConfig, PolicyConfig
from easydistill.methods.policy.trainer import (
    Alarms,
    GroupOrder,
    PolicyRow,
    measure,
    rollout_of,
    without_zero_abstentions,
    zero_variance,
)
from easydistill.methods.sft.trainer import AllStepsDone, TrainingOutcome, Watch, outcome_of, with_adapters
from easydistill.methods.shared.checkpoints import is_whole, last_whole_checkpoint, step_of
from easydistill.methods.shared.compat import argument_values
from easydistill.methods.shared.rollouts import Written, roll_out
from easydistill.methods.shared.trl_parts import WritingTrainer
from easydistill.models.loading import device, with_padding
from easydistill.models.student import Student
from easydistill.rewards import RewardScores, WeightedRewards

try:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TRL currently supports vLLM", UserWarning)
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
        from trl.trainer.utils import add_fused_lm_head
except ImportError:
    raise MissingExtra("trl", "Training by rewards") from None

_KEPT = {
    "reward": "reward",
    "reward_std": "reward_std",
    "entropy": "entropy",
    "kl": "kl",
    "clip_ratio/low_mean": "clipped_low",
    "clip_ratio/high_mean": "clipped_high",
    "completions/mean_length": "length",
    "completions/max_length": "length_max",
    "completions/mean_terminated_length": "length_of_ended",
}
"""TRL's figures of a step that are logged, and as what."""
HELDOUT = "heldout.jsonl"
"""Journal of held-out figures, beside the checkpoints."""
ALARMS = "alarms.json"
"""What was noticed until a checkpoint, inside it."""
_CUT_OFF = "completions/clipped_ratio"
_OF_TOKENS = ("entropy", "kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")
"""TRL's figures of a micro-batch that are means over the tokens which count."""


class Explorer:
    """What training by rewards is given beside the model: rows, rewards, and what is measured."""

    def __init__(
        self,
        rows: Sequence[PolicyRow],
        heldout: Sequence[PolicyRow],
        rewards: WeightedRewards,
        verify: Reward | None,
    ) -> None:
        """
        Args:
            verify: tells right answers (1) from wrong ones (0), for the held-out measurement; None where nothing can.
        """
        self.rows, self.heldout, self.rewards, self.verify = rows, heldout, rewards, verify
        self.measured: dict[int, dict[str, Any]] = {}
        """Held-out figures, by step."""
        self.alarms = Alarms()


def train(
    student: Student,
    explorer: Explorer,
    config: TrainerConfig,
    policy: PolicyConfig,
    checkpoints: Path,
    reporter: Reporter,
    stop: StopSignal,
    trainer_class: type[PolicyTrainer] | None = None,
    **extra: Any,
) -> TrainingOutcome:
    """Train `student` in place (float32 on the CPU when it enters); with LoRA its adapters are merged at the end.

    Goes on from the last whole checkpoint. Returns early, after the round's checkpoint, once `stop` is requested.

    Args:
        trainer_class: GRPO's by default.
        extra: what that class takes besides.

    Raises:
        DataError: there are no rows, the student counts positions from its padding, or the loss is not finite.
        TeacherError: a judge failed for good.
    """
    if not explorer.rows:
        raise DataError("there is nothing to train on: no prompt is left")
    if (learned := learned_positions(student.model)) is not None:
        problem = f"the student has an embedding of positions ({learned}), which shift where prompts are padded"
        raise DataError(f"{problem}\n    → take a student with rotary positions, such as Llama's or Qwen's")
    resume = last_whole_checkpoint(checkpoints)
    checkpoints.mkdir(parents=True, exist_ok=True)
    journal = Journal(checkpoints / HELDOUT)
    watch = PolicyWatch(reporter, stop, config, policy, explorer, journal)
    watch.recall(resume)
    with journal, watch, kept_settings(student.model):
        made = trainer_class or PolicyTrainer
        trainer = made(student, explorer, config, policy, checkpoints, watch, **extra)
        watch.trainer = trainer
        try:
            with contextlib.suppress(AllStepsDone):
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except (Interrupted, TeacherError):
            # A judge that failed, or was not waited for: all rounds before are kept.
            trainer.keep()
            raise
        if not stop.requested:
            watch.measure_now(trainer.state.global_step)
        trainer.finish()
    outcome = outcome_of(trainer.state, trainer.model, int(trainer.state.num_input_tokens_seen), resume)
    student.model = trainer.model.merge_and_unload() if config.lora is not None else trainer.model
    # TRL patches a forward of its own onto the instance; whoever gets the model next expects logits from it.
    student.model.__dict__.pop("forward", None)
    student.model.eval()
    return outcome


def learned_positions(model: Any) -> str | None:
    """The name of a model's embedding of absolute positions, which must not be shifted by padding; None without one."""
    last_parts = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    return min(last_parts & {"wpe", "embed_positions", "position_embeddings"}, default=None)


def arguments(config: TrainerConfig, policy: PolicyConfig, checkpoints: Path) -> GRPOConfig:
    """TRL's own class, with the values that transformers' would have."""
    values = argument_values(config, checkpoints, device())
    # A resumed run starts with a new round: only what is saved at the end of one can be gone on from.
    values["save_steps"] = -(-int(config.save_steps) // policy.steps_per_round) * policy.steps_per_round
    values |= {
        "max_completion_length": policy.max_new_tokens,
        "temperature": policy.temperature,
        "num_iterations": policy.num_iterations,
        "steps_per_generation": policy.steps_per_rollout * config.gradient_accumulation_steps,
        "epsilon": policy.epsilon,
        "epsilon_high": policy.highest,
        "use_vllm": policy.rollouts == "vllm",
        "vllm_mode": "colocate",
        # What answers are drawn from must be what the loss sees.
        "disable_dropout": True,
        # The reference is made by us: TRL would load it anew from where the model once came from.
        "beta": 0.0,
        # Read again for PPO, which needs no groups: TRL refuses less than two.
        "num_generations": max(2, policy.num_generations),
    }
    if isinstance(policy, GrpoConfig):
        values |= {
            "loss_type": policy.loss_type,
            "scale_rewards": policy.scale_rewards,
            "importance_sampling_level": policy.importance_sampling,
            "mask_truncated_completions": policy.mask_truncated,
        }
    if policy.num_generations < 2:
        values["steps_per_generation"] *= 2
    made = GRPOConfig(**values)
    if policy.num_generations < 2:
        made.num_generations = policy.num_generations
        made.steps_per_generation //= 2
        made.generation_batch_size //= 2
    return made


class PolicyWatch(Watch):
    """Also tells what is explored and how good it is, measures on held-out prompts, and stops between rounds alone."""

    def __init__(
        self,
        reporter: Reporter,
        stop: StopSignal,
        config: TrainerConfig,
        policy: PolicyConfig,
        explorer: Explorer,
        journal: Journal,
    ) -> None:
        super().__init__(reporter, stop, config)
        self._policy, self._explorer, self._journal = policy, explorer, journal
        self.trainer: PolicyTrainer | None = None
        self.rewards: list[dict[str, float]] = []
        """Means of each reward, and what else is told of a round."""
        self.figures: dict[str, list[float]] = {}
        """What else is to be told, since the last entry."""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if state.global_step == 0 or self._due(state.global_step):
            self.measure_now(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer is not None:
            self.trainer.step_critic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        between = state.global_step % self._policy.steps_per_round == 0
        # A run that is to stop here measures when it goes on.
        if self._due(state.global_step) and not (between and self._stop.requested):
            self.measure_now(state.global_step)
        wanted, self._stop = self._stop, self._stop if between else StopSignal()
        try:
            return super().on_step_end(args, state, control, **kwargs)
        finally:
            self._stop = wanted

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        super().on_log(args, state, control, logs, **kwargs)
        if not logs or "loss" not in logs:
            return
        found = {ours: logs[theirs] for theirs, ours in _KEPT.items() if logs.get(theirs) is not None}
        if logs.get(_CUT_OFF) is not None:
            found["ended"] = 1 - logs[_CUT_OFF]
        for source in (self.rewards, [{name: value} for name, all_ in self.figures.items() for value in all_]):
            for name in sorted({name for entry in source for name in entry}):
                values = [entry[name] for entry in source if name in entry]
                found.setdefault(name, sum(values) / len(values))
        self.rewards, self.figures = [], {}
        # Of a round in which every answer abstained there is no mean.
        found = {name: value for name, value in without_zero_abstentions(found).items() if math.isfinite(value)}
        self._reporter.metric("policy", step=state.global_step, **found)
        self._warn(self._explorer.alarms.step(state.global_step, found))

    def _due(self, step: int) -> bool:
        """Whether a round ends here in which a measurement falls: from there a run whose judge fails can go on."""
        every, length = self._policy.eval_steps, self._policy.steps_per_round
        return every > 0 and step % length == 0 and step % every < length

    def measure_now(self, step: int) -> None:
        """Let the policy answer the held-out prompts, unless it just has."""
        if not self._explorer.heldout or self.trainer is None or step in self._explorer.measured:
            return
        figures = self.trainer.measure()
        self._journal.append({"key": str(step), "figures": figures})
        self._explorer.measured[step] = figures
        self._reporter.metric("heldout", step=step, **figures)
        self._warn(self._explorer.alarms.heldout(step, figures))

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (checkpoint / ALARMS).write_text(json.dumps(self._explorer.alarms.state()), encoding="utf-8")
        super().on_save(args, state, control, **kwargs)

    def recall(self, checkpoint: Path | None) -> None:
        """Take up what was noticed and measured until the checkpoint that training goes on from."""
        if checkpoint is None:
            return
        alarms = self._explorer.alarms
        alarms.restore(json.loads((checkpoint / ALARMS).read_text(encoding="utf-8")))
        for step in sorted(map(int, self._journal)):
            if step <= step_of(checkpoint):
                self._explorer.measured[step] = self._journal.get(str(step))["figures"]
                alarms.heldout(step, self._explorer.measured[step])

    def _warn(self, told: Sequence[str]) -> None:
        for sentence in told:
            self._reporter.say(f"  warning: {sentence}")


def _named(name: str) -> Any:
    def reward(**values: Any) -> list[float]:
        raise AssertionError("rewards are computed by _calculate_rewards")

    reward.__name__ = name
    return reward


class PolicyTrainer(WritingTrainer, GRPOTrainer):
    """TRL's trainer with our answers and rewards in place of the ones that it would get."""

    def __init__(
        self,
        student: Student,
        explorer: Explorer,
        config: TrainerConfig,
        policy: PolicyConfig,
        checkpoints: Path,
        watch: PolicyWatch,
    ) -> None:
        self._student, self._explorer, self._config, self._policy = student, explorer, config, policy
        self._watch = watch
        self._asked: list[int] = []
        self._ended: list[bool] = []
        reference = self._make_reference(student)
        super().__init__(
            model=with_adapters(student.model, config),
            reward_funcs=[_named("total")],
            args=arguments(config, policy, checkpoints),
            train_dataset=Dataset.from_dict({"prompt": list(range(len(explorer.rows)))}),
            processing_class=with_padding(student.tokenizer),
            callbacks=[watch],
        )
        self.remove_callback(PrinterCallback)
        if self._needs_reference:
            self.beta = getattr(policy, "beta", 0.0)
            if reference is not None:
                add_fused_lm_head(reference, temperature=self.temperature)
                self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)

    def keep(self) -> None:
        """A checkpoint of now, if a round has just ended and there is none yet."""
        step = self.state.global_step
        target = Path(self.args.output_dir) / f"checkpoint-{step}"
        if step and step % self._policy.steps_per_round == 0 and not is_whole(target):
            self._save_checkpoint(self.model, None)
            self.callback_handler.on_save(self.args, self.state, self.control)

    def step_critic(self) -> None:
        """GRPO has no critic."""

    def finish(self) -> None:
        """Nothing is left at the model but what TRL put there."""

    @property
    def _needs_reference(self) -> bool:
        return getattr(self._policy, "beta", 0.0) > 0

    def _make_reference(self, student: Student) -> Any:
        """A copy of the student as it starts; adapters need none, for they can be switched off."""
        if not self._needs_reference or self._config.lora is not None:
            return None
        return copy.deepcopy(student.model).eval().requires_grad_(False)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """Ours: TRL's permutes the same generator further with every epoch, and a resumed run starts it anew."""
        group = self._policy.num_generations
        return GroupOrder(
            len(self._explorer.rows),
            self.args.generation_batch_size // group,
            group,
            self._config.seed,
            self.num_iterations * self.args.steps_per_generation,
        )

    def _tokenize_prompts(self, prompts: list[int]) -> tuple[list[list[int]], None, dict[str, Any]]:
        self._asked = list(prompts)
        return [self._explorer.rows[index].prompt for index in prompts], None, {}

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], Any]:
        """Answers, end token included, each from a random stream of its own."""
        if self.use_vllm:
            completions, logprobs = super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
            self._ended = [ids[-1] in self._student.eos_ids for ids in completions]
            return completions, logprobs
        first = self.accelerator.process_index * len(prompt_ids)
        asked = [
            (f"{self._explorer.rows[index].id}:{first + at}", prompt_ids[at]) for at, index in enumerate(self._asked)
        ]
        with self._generating() as model:
            written = self._write(model, asked, self.state.global_step, self._policy.temperature)
        self._ended = [item.ended for item in written]
        return [item.completion for item in written], None

    def _write(
        self, model: Any, asked: Sequence[tuple[str, list[int]]], step: int, temperature: float
    ) -> list[Written]:
        longest = self._policy.max_new_tokens
        return roll_out(model, asked, step, self._student.eos_ids, longest, temperature, self._config.seed)

    def _texts(self, completions: Sequence[Sequence[int]]) -> list[str]:
        texts: list[str] = self.processing_class.batch_decode(completions, skip_special_tokens=True)
        return texts

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """What each answer is worth, (answers, 1), over all processes; NaN where no reward knows."""
        rows = [self._explorer.rows[index] for index in self._asked]
        parts = zip(rows, completion_ids_list, self._texts(completion_ids_list), self._ended, strict=True)
        scored = self._explorer.rewards.score([rollout_of(*part) for part in parts])
        self._watch.rewards.append({name: value for name, value in scored.summary().items() if name != "reward"})
        totals = [float("nan") if total is None else total for total in scored.totals]
        mine_B1 = torch.tensor(totals, dtype=torch.float32, device=self.accelerator.device)[:, None]
        found: Tensor = self.accelerator.gather(mine_B1)
        if (group := self._policy.num_generations) > 1:
            # TRL takes a group for one to learn from whose rewards nobody knows.
            self._watch.rewards.append({"zero_variance_groups": zero_variance(found[:, 0].tolist(), group)})
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        """TRL's loss; its figures of a micro-batch without any token that counts, all 0, are taken back."""
        loss = super()._compute_loss(model, inputs)
        counted: Any = self.accelerator.reduce(inputs["completion_mask"].sum(), reduction="sum")
        if model.training and not counted:
            for name in _OF_TOKENS:
                figures = self._metrics["train"].pop(name, [])[:-1]
                if figures:
                    self._metrics["train"][name] = figures
        return loss

    def measure(self) -> dict[str, Any]:
        """Figures of the policy's most probable answers to the held-out prompts, which other draws do not feel."""
        rows = self._explorer.heldout
        was_training = self.model.training
        with self._generating() as model:
            written = self._write(model, [(row.id, row.prompt) for row in rows], 0, 0.0)
        self.model.train(was_training)
        texts = self._texts([item.completion for item in written])
        rollouts = [
            rollout_of(row, item.completion, text, item.ended)
            for row, item, text in zip(rows, written, texts, strict=True)
        ]
        scored: RewardScores = self._explorer.rewards.score(rollouts)
        verified = self._explorer.verify(rollouts) if self._explorer.verify is not None else [None] * len(rollouts)
        return measure(written, scored, verified)
