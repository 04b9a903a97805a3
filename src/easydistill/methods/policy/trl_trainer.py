"""GRPO with TRL's GRPOTrainer, and the overrides of its internals, which PPO (`ppo_trl_trainer.py`) shares.

Ours: tokenisation of prompts, answers drawn from (seed, step, row), the order of prompts, rewards from the registry,
held-out measurements and alarms, complete checkpoints at the ends of rounds, Ctrl-C. A round is the answers of one
generation; a resumed run begins at the start of a round, and ends with the same weights as an uninterrupted one.

Written against TRL 1.16.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from easydistill.config.training import TrainerConfig
from easydistill.data.journal import Journal
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import ConfigError, ConfigIssue, DataError, Interrupted, MissingExtra, TeacherError
from easydistill.methods.policy.config import GrpoConfig, PolicyConfig
from easydistill.methods.policy.measure import measure, zero_variance
from easydistill.methods.policy.rounds import dealt, score_round
from easydistill.methods.policy.rows import GroupOrder, rollout_of
from easydistill.methods.policy.watch import Explorer, PolicyWatch
from easydistill.methods.shared.adapters import with_adapters
from easydistill.methods.shared.checkpoints import is_whole, last_whole_checkpoint
from easydistill.methods.shared.compat import argument_values, importing_trl
from easydistill.methods.shared.phases import Phases
from easydistill.methods.shared.ranks import any_rank, check_ranks, numbers_of_share, rank, together, world_size
from easydistill.methods.shared.restored import RandomState, kept_settings
from easydistill.methods.shared.rollouts import Written, roll_out
from easydistill.methods.shared.shown_images import ShownImages, check_images
from easydistill.methods.shared.strategies.base import strategy
from easydistill.methods.shared.strategies.gathered import Gathered
from easydistill.methods.shared.trl_parts import WritingTrainer
from easydistill.methods.shared.watch import TrainingOutcome, run_trainer, training_outcome
from easydistill.models.loading import device, is_multimodal, with_padding
from easydistill.models.student import Student
from easydistill.rewards import RewardScores
from easydistill.teachers.parsing import text_of

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

try:
    with importing_trl():
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
        from trl.trainer.utils import add_fused_lm_head
except ImportError:
    raise MissingExtra("trl", "Training by rewards") from None

HELDOUT = "heldout.jsonl"
"""Journal of held-out figures, beside the checkpoints."""
ROW = "row"
"""Beside TRL's tensors of a round, where the student sees images: the number of each answer's prompt."""
_OF_TOKENS = ("entropy", "kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")
"""TRL's figures of a micro-batch that are means over its counted tokens."""


def train(
    student: Student,
    explorer: Explorer,
    config: TrainerConfig,
    policy: PolicyConfig,
    checkpoints: Path,
    reporter: Reporter,
    stop: StopSignal,
    trainer_class: type[PolicyTrainer] | None = None,
    vision: Vision | None = None,
    **extra: Any,
) -> TrainingOutcome:
    """Train `student` in place (float32 on the CPU when it enters); with LoRA its adapters are merged at the end.

    Resumes from the last complete checkpoint. Returns early, after the round's checkpoint, once `stop` is requested.

    Args:
        trainer_class: by default GRPO's.
        vision: of a student that sees images.
        extra: further arguments of that class.

    Raises:
        ConfigError: only what sees images is to be trained, and no row has any.
        DataError: there are no rows, the student has absolute position embeddings, or the loss is not finite.
        TeacherError: a judge failed for good.
    """
    if not explorer.rows:
        raise DataError("there is nothing to train on: no prompt is left")
    if vision is not None:
        check_images(config, (row.images for row in explorer.rows))
    if (learned := learned_positions(student.model)) is not None:
        problem = f"the student has absolute position embeddings ({learned}), which padding of prompts would shift"
        raise DataError(f"{problem}\n    → use a student with rotary positions, such as a Llama or Qwen model")
    resume = last_whole_checkpoint(checkpoints)
    if resume is not None:
        check_ranks(resume)
    checkpoints.mkdir(parents=True, exist_ok=True)
    journal = Journal(checkpoints / HELDOUT) if rank() == 0 else None
    watch = PolicyWatch(reporter, stop, config, policy, explorer, journal)
    watch.recall(resume)
    with contextlib.nullcontext() if journal is None else journal, watch, kept_settings(student.model):
        made = trainer_class or PolicyTrainer
        trainer = made(student, explorer, config, policy, checkpoints, watch, vision=vision, **extra)
        watch.trainer = trainer
        if resume is not None:
            trainer.recall_critic(resume)
        try:
            run_trainer(trainer, resume)
        except (Interrupted, TeacherError):
            # The judge failed, or waiting for it was interrupted: keep all rounds before.
            trainer.keep()
            raise
        if not any_rank(stop.requested):
            watch.measure_now(trainer.state.global_step)
    strategy().whole(trainer, trainer.model)
    trainer.finish()
    outcome = training_outcome(trainer.state, trainer.model, int(trainer.state.num_input_tokens_seen), resume)
    student.model = trainer.model.merge_and_unload() if config.lora is not None else trainer.model
    # TRL patches its own forward onto the instance; later users of the model expect logits.
    student.model.__dict__.pop("forward", None)
    student.model.eval()
    return outcome


def learned_positions(model: Any) -> str | None:
    """The name of a model's absolute position embedding, which padding would shift; None without one.

    Those of a vision tower do not count: images are not padded.
    """
    model = model.get_decoder() if is_multimodal(model.config) else model
    last_parts = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    return min(last_parts & {"wpe", "embed_positions", "position_embeddings"}, default=None)


def arguments(config: TrainerConfig, policy: PolicyConfig, checkpoints: Path) -> GRPOConfig:
    """TRL's arguments, with our values wherever transformers has the same argument."""
    if policy.rollouts == "vllm" and device().type == "cpu":
        problem, hint = "vLLM shares the training's GPU, and there is none here", "set policy.rollouts=transformers"
        raise ConfigError(ConfigIssue("config", "policy.rollouts", problem, hint))
    if policy.rollouts == "vllm" and world_size() > 1:
        problem, hint = "vLLM's answers cannot be shared by several processes", "set policy.rollouts=transformers"
        raise ConfigError(ConfigIssue("config", "policy.rollouts", problem, hint))
    values = argument_values(config, checkpoints, device())
    # A resumed run starts with a new round, so checkpoints are only useful at the end of one.
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
        # Answers must be drawn from the distribution that the loss sees.
        "disable_dropout": True,
        # We make the reference: TRL would load it again from the model's original path.
        "beta": 0.0,
        # Reset below for PPO, which needs no groups: TRL refuses values below two.
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


def _named(name: str) -> Any:
    def reward(**values: Any) -> list[float]:
        raise AssertionError("rewards are computed by _calculate_rewards")

    reward.__name__ = name
    return reward


class PolicyTrainer(WritingTrainer, GRPOTrainer):
    """TRL's trainer with our answers and rewards."""

    _buffered_inputs: Any

    def __init__(
        self,
        student: Student,
        explorer: Explorer,
        config: TrainerConfig,
        policy: PolicyConfig,
        checkpoints: Path,
        watch: PolicyWatch,
        vision: Vision | None = None,
    ) -> None:
        self._student, self._explorer, self._config, self._policy = student, explorer, config, policy
        self._watch, self._vision = watch, vision
        self._shown: list[int] = []
        self.phases = watch.phases = Phases(device())
        self._asked: list[int] = []
        self._ended: list[bool] = []
        self._round_end: tuple[int, RandomState, int | float] | None = None
        reference = self._make_reference(student)
        super().__init__(
            model=with_adapters(student.model, config),
            reward_funcs=[_named("total")],
            args=arguments(config, policy, checkpoints),
            train_dataset=Dataset.from_dict({"prompt": list(range(len(explorer.rows)))}),
            processing_class=with_padding(student.tokenizer, student.limits.tokens),
            callbacks=[watch],
        )
        pairs = [(row.prompt, row.images) for row in explorer.rows]
        padding = self.processing_class.pad_token_id
        self._images = None if vision is None else ShownImages(vision, pairs, padding, config.learns_of_text)
        if self._needs_reference:
            self.beta = getattr(policy, "beta", 0.0)
            if reference is not None:
                model = reference.structure if isinstance(reference, Gathered) else reference
                add_fused_lm_head(model, temperature=self.temperature)
                whole = isinstance(reference, Gathered)
                self.ref_model = reference if whole else self.accelerator.prepare_model(model, evaluation_mode=True)

    def remember(self) -> None:
        """Record what the next round changes before its first step: random generators and the count of tokens."""
        self._round_end = (self.state.global_step, RandomState.now(), self.state.num_input_tokens_seen)

    def keep(self) -> None:
        """Save a checkpoint as of the end of the round that has just ended, unless there is one.

        The next round has begun: at the end of an epoch its data loader has drawn a seed, and its answers are counted.
        """
        step = self.state.global_step
        target = Path(self.args.output_dir) / f"checkpoint-{step}"
        if self._round_end is not None and self._round_end[0] == step and not is_whole(target):
            _, random_state, self.state.num_input_tokens_seen = self._round_end
            random_state.restore()
            self._save_checkpoint(self.model, None)
            self.callback_handler.on_save(self.args, self.state, self.control)

    def step_critic(self) -> None:
        """GRPO has no critic."""

    def recall_critic(self, checkpoint: Path) -> None:
        """GRPO has none."""

    def finish(self) -> None:
        """GRPO leaves nothing on the model that must be removed."""

    @property
    def _needs_reference(self) -> bool:
        return self._policy.needs_reference

    def _make_reference(self, student: Student) -> Any:
        """A copy of the untrained student; not needed with LoRA, whose adapters can be switched off."""
        if not self._needs_reference or self._config.lora is not None:
            return None
        found = strategy().kept_as_it_is(student.model, self._computed())
        return copy.deepcopy(student.model).eval().requires_grad_(False) if found is None else found

    def _order(self) -> Any:
        """Ours, because TRL's generator advances with every epoch and restarts in a resumed run."""
        group = self._policy.num_generations
        return GroupOrder(
            len(self._explorer.rows),
            self.args.generation_batch_size // group,
            group,
            self._config.seed,
            self.num_iterations * self.args.steps_per_generation,
        )

    def _tokenize_prompts(self, prompts: list[int]) -> tuple[list[list[int]], None, dict[str, Any]]:
        self._asked = self._shown = list(prompts)
        return [self._explorer.rows[index].prompt for index in prompts], None, {}

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], Any]:
        """Answers, end token included, each drawn from its own random stream."""
        if self.use_vllm:
            with self.phases.during("rollouts"):
                completions, logprobs = super()._generate_single_turn(
                    prompt_ids, images, multimodal_fields, num_generations, has_tool_images
                )
            self._ended = [ids[-1] in self._student.eos_ids for ids in completions]
            return completions, logprobs
        numbers = numbers_of_share(len(prompt_ids))
        asked = [
            (f"{self._explorer.rows[index].id}:{number}", ids)
            for index, number, ids in zip(self._asked, numbers, prompt_ids, strict=True)
        ]
        with self.phases.during("rollouts"), self._generating() as model:
            images = [self._explorer.rows[index].images for index in self._asked]
            written = self._write(model, asked, images, self.state.global_step, self._policy.temperature, numbers)
        self._ended = [item.ended for item in written]
        return [item.completion for item in written], None

    def _write(
        self,
        model: Any,
        asked: Sequence[tuple[str, list[int]]],
        images: Sequence[tuple[str, ...]],
        step: int,
        temperature: float,
        numbers: Sequence[int] | None = None,
    ) -> list[Written]:
        longest, ends = self._policy.max_new_tokens, self._student.eos_ids
        return roll_out(
            model, asked, step, ends, longest, temperature, self._config.seed, numbers, images, self._vision
        )

    def _texts(self, completions: Sequence[Sequence[int]]) -> list[str]:
        return [text_of(self.processing_class, ids, self._student.eos_ids) for ids in completions]

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """The reward of each answer, (answers, 1), over all processes; NaN where every reward abstains."""
        rows = [self._explorer.rows[index] for index in self._asked]
        parts = zip(rows, completion_ids_list, self._texts(completion_ids_list), self._ended, strict=True)
        with self.phases.during("rewards"):
            rollouts = [rollout_of(*part) for part in parts]
            scored = score_round(self._explorer.rewards, rollouts, by_first=self._explorer.by_first)
        self._watch.rewards.append({name: value for name, value in scored.summary().items() if name != "reward"})
        totals = [float("nan") if total is None else total for total in scored.totals]
        found = torch.tensor(totals, dtype=torch.float32, device=self.accelerator.device)[:, None]
        if (group := self._policy.num_generations) > 1:
            # TRL's own figure counts groups without any known reward as informative.
            self._watch.rewards.append({"zero_variance_groups": zero_variance(found[:, 0].tolist(), group)})
        return found

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with self.phases.during("scores"):
            found: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self._images is not None:
            found[ROW] = torch.tensor(self._asked, device=self.accelerator.device)
        return found

    @contextlib.contextmanager
    def _showing(self, rows: list[int]) -> Iterator[None]:
        """Inside, log-probabilities are those of answers to these prompts, given by number."""
        before, self._shown = self._shown, rows
        try:
            yield
        finally:
            self._shown = before

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """In bfloat16 if configured, as in the loss; by a model in parts with all its weights; with rows' images."""
        whole = model.whole() if isinstance(model, Gathered) else contextlib.nullcontext(model)
        with whole as model, self._autocast():
            if self._images is None:
                return super()._get_per_token_logps_and_entropies(
                    model, input_ids, attention_mask, logits_to_keep, batch_size, **kwargs
                )
            size = batch_size or len(input_ids)
            parts = [
                self._with_images(
                    model, input_ids[at : at + size], attention_mask[at : at + size], logits_to_keep, at, kwargs
                )
                for at in range(0, len(input_ids), size)
            ]
        logps, entropies, auxiliary = zip(*parts, strict=True)
        return (
            torch.cat(logps),
            None if entropies[0] is None else torch.cat(entropies),
            None if auxiliary[0] is None else torch.stack(auxiliary).mean(),
        )

    def _with_images(
        self, model: Any, ids_BL: Tensor, mask_BL: Tensor, tokens: int, first: int, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """TRL's log-probabilities, entropies and auxiliary loss of rows, of which the first is number `first` of those
        that are shown."""
        assert self._images is not None
        count = len(ids_BL)
        rows = [self._images.rows[index] for index in self._shown[first : first + count]]
        shown = self._images.batch(ids_BL, mask_BL, rows, self._student.model)
        # TRL asks the model for the tokens of a batch; what the rows show goes with them.
        seeing = partial(model, **shown.seen)
        logps, entropies, auxiliary = super()._get_per_token_logps_and_entropies(
            seeing, shown.ids_BL, shown.mask_BL, tokens, **options
        )
        return logps[:count], None if entropies is None else entropies[:count], auxiliary

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's, but for the shuffle of a round whose answers are spread over ranks."""
        if world_size() == 1 or not self.model.training:
            return super()._prepare_inputs(generation_batch)
        steps = self.args.steps_per_generation
        if self._step % (steps * self.num_iterations) == 0 or self._buffered_inputs is None:
            found = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = dealt(found, steps, self.processing_class.pad_token_id)
        return self._buffered_inputs[self._step % steps]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        """TRL's loss; the figures of a micro-batch without any counted token, which are all 0, are dropped."""
        with self._showing(inputs[ROW].tolist() if ROW in inputs else []):
            loss = super()._compute_loss(model, inputs)
        mine = inputs["completion_mask"].sum()
        counted: Any = self.accelerator.reduce(mine, reduction="sum")
        if self.loss_type == "bnpo":
            # A mean over this rank's tokens; the mean over ranks is to be that over all tokens.
            loss = loss * (mine.clamp(min=1) * world_size() / counted.clamp(min=1)) if world_size() > 1 else loss
        if model.training and not counted:
            for name in _OF_TOKENS:
                figures = self._metrics["train"].pop(name, [])[:-1]
                if figures:
                    self._metrics["train"][name] = figures
        return loss

    def measure(self) -> dict[str, Any]:
        """Figures of greedy answers to the held-out prompts; other random draws are not affected."""
        with self.phases.during("heldout"):
            return self._measured()

    def _measured(self) -> dict[str, Any]:
        rows = self._explorer.heldout
        was_training = self.model.training
        with self._generating(first_only=True) as model:
            asked, images = [(row.id, row.prompt) for row in rows], [row.images for row in rows]
            written = self._write(model, asked, images, 0, 0.0) if rank() == 0 else []
        self.model.train(was_training)
        return together(lambda: self._of_heldout(written) if rank() == 0 else {})[0]

    def _of_heldout(self, written: Sequence[Written]) -> dict[str, Any]:
        """Figures of answers to the held-out prompts."""
        rows = self._explorer.heldout
        texts = self._texts([item.completion for item in written])
        self._explorer.said[self.state.global_step] = texts
        rollouts = [
            rollout_of(row, item.completion, text, item.ended)
            for row, item, text in zip(rows, written, texts, strict=True)
        ]
        scored: RewardScores = self._explorer.rewards.score(rollouts)
        verified = self._explorer.verify(rollouts) if self._explorer.verify is not None else [None] * len(rollouts)
        return measure(written, scored, verified)
