"""The `policy` sections of PPO and GRPO: how the student explores, and how it learns from rewards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from easydistill.config.base import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Section,
    Share,
    Unfit,
)
from easydistill.config.training import TrainerConfig


class PolicyConfig(Section):
    """Options of both PPO and GRPO. The policy is the student."""

    num_generations: PositiveInt = 1
    """Answers per prompt."""
    max_new_tokens: PositiveInt = 256
    """Longest answer, in tokens."""
    temperature: Annotated[PositiveFloat, Field(ge=0.05, le=10)] = 1.0
    """Temperature of sampling, and of the probabilities in the loss. There is no top-p or top-k: answers must be drawn
    from the distribution that is trained."""
    rollouts: Literal["transformers", "vllm"] = "transformers"
    """The engine that generates. `vllm` needs a GPU, which it shares with the training (TRL's colocate mode)."""
    steps_per_rollout: PositiveInt = 1
    """Optimiser steps per round of answers. More steps generate less often, in larger batches."""
    num_iterations: PositiveInt = 1
    """Passes over the answers of a round (μ; PPO's epochs)."""
    epsilon: PositiveShare = 0.2
    """ε: a token stops counting in a round once its probability has fallen by this share, so that no step goes too
    far."""
    epsilon_high: PositiveFloat | None = None
    """Share by which it may rise; by default ε."""
    eval_steps: NonNegativeInt = 20
    """Optimiser steps between measurements on held-out prompts, each made at the end of its round. 0 measures only
    before and after training."""
    pass_rate: tuple[Share, Share] = (0.1, 0.9)
    """Rows with a `pass_rate` (as `cot_generation` writes it) are trained on if it lies in this range: prompts that
    always or never succeed teach nothing."""

    @property
    def highest(self) -> float:
        """Share by which a token's probability may rise."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def needs_reference(self) -> bool:
        """Whether the untrained student is kept, to measure how far the trained one has moved."""
        return False

    @property
    def steps_per_round(self) -> int:
        """Optimiser steps from one generation to the next."""
        return self.steps_per_rollout * self.num_iterations

    @model_validator(mode="after")
    def _in_order(self) -> PolicyConfig:
        low, high = self.pass_rate
        if low > high:
            raise Unfit(f"pass_rate [{low:g}, {high:g}] is empty", "give the lower share first")
        return self


class GrpoConfig(PolicyConfig):
    """Group relative policy optimisation (GRPO, arXiv 2402.03300) on TRL, with DAPO's improvements (arXiv 2503.14476).

    A_i = (R_i − mean of the group) / (its standard deviation + 1e-4): each answer against the others to its prompt.
    """

    num_generations: Annotated[int, Field(ge=2)] = 8
    """G: answers per prompt, which are compared with each other."""
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo"] = "dapo"
    """How tokens are averaged: `dapo` over the whole step, `grpo` over each answer first, which favours short ones."""
    epsilon_high: PositiveFloat | None = None
    """Share by which a token's probability may rise before the token stops counting; by default 0.28 (DAPO's
    clip-higher). With `cispo`, the cap of the ratio itself, by default 5."""
    beta: NonNegativeFloat = 0.0
    """Weight of the KL divergence from the untrained student in the loss; above 0, a second model is kept in memory."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divisor of advantages: standard deviation of the group, of the batch, or none (Dr. GRPO)."""
    importance_sampling: Literal["token", "sequence"] = "token"
    """Importance ratios per token, or one per answer with `sequence` (GSPO, arXiv 2507.18071)."""
    mask_truncated: bool = True
    """Leave truncated answers out of the loss."""

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0

    @property
    def highest(self) -> float:
        """Share by which a token's probability may rise; with `cispo`, the highest ratio."""
        if self.epsilon_high is not None:
            return self.epsilon_high
        return 5.0 if self.loss_type == "cispo" else 0.28

    @model_validator(mode="after")
    def _clips_as_the_loss_does(self) -> GrpoConfig:
        if self.loss_type == "cispo" and self.highest < 1:
            problem = f"with cispo, epsilon_high is the highest ratio itself, and {self.highest:g} is below 1"
            raise Unfit(problem, "remove it, or give e.g. 5")
        if self.loss_type == "sapo" and {"epsilon", "epsilon_high"} & self.model_fields_set:
            raise Unfit("sapo does not clip: epsilon and epsilon_high have no effect", "remove them")
        return self


class PpoConfig(PolicyConfig):
    """Proximal policy optimisation (PPO, arXiv 1707.06347) with a learned value for every token.

    A token's reward is −kl_coef (log π_old − log π_ref), plus the answer's reward at its last token; advantages are
    GAE's (arXiv 1506.02438).
    """

    num_iterations: PositiveInt = 4
    """Passes over the answers of a round."""
    kl_coef: NonNegativeFloat = 0.05
    """Penalty for moving away from the untrained student, per nat of log-probability."""
    gamma: Share = 1.0
    """γ: discount per token."""
    lam: Share = 0.95
    """λ of GAE: 1 uses the answer's actual return, 0 relies on the value of the next token."""
    whiten: bool = True
    """Normalise a round's advantages to mean 0 and standard deviation 1."""
    vf_coef: NonNegativeFloat = 0.1
    """Weight of the value loss relative to the policy loss."""
    value_clip: PositiveFloat = 0.2
    """How far a value may move from its value at generation time before it stops counting."""
    missing_eos_penalty: NonNegativeFloat = 1.0
    """Subtracted from the reward of a truncated answer."""
    critic: Literal["reward_model", "value_head"] | None = None
    """The critic: a copy of `rewards.reward_model` that is trained further, or a linear layer on the policy itself,
    which a student that sees images needs. By default the reward model, if there is one with the tokens of a student of
    text. Neither is saved with the student."""
    critic_learning_rate: PositiveFloat = 1e-5
    """Learning rate of the critic, constant."""

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0


class PolicyTrainingConfig(TrainerConfig):
    """Training by rewards. Batch sizes count answers, not prompts."""

    num_train_epochs: PositiveFloat = 1.0
    """Passes over the prompts."""
    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate; with `lora` ten times as much is usual."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay."""
    per_device_train_batch_size: Annotated[int, Field(ge=1)] = 8
    """Answers per device and micro-batch."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = 1
    """Micro-batches per optimiser step."""
    max_length: Annotated[int, Field(ge=2)] = 1024
    """Longest prompt with its answer, in tokens; prompts without room for an answer are rejected."""


def check_rounds(policy: PolicyConfig, training: TrainerConfig, processes: int = 1) -> None:
    """Check that a round consists of whole groups, and that prompts have room.

    Args:
        processes: that train together, each with its part of a round.

    Raises:
        Unfit: a round has incomplete groups, or answers fill `max_length`.
    """
    answers = training.per_device_train_batch_size * training.gradient_accumulation_steps * policy.steps_per_rollout
    answers *= processes
    if answers % policy.num_generations:
        shared = " × launch.processes" if processes > 1 else ""
        raise Unfit(
            f"a round has {answers} answers (per_device_train_batch_size × gradient_accumulation_steps × "
            f"steps_per_rollout{shared}), which cannot be divided into whole groups of {policy.num_generations}",
            "make it a multiple of policy.num_generations",
        )
    if policy.max_new_tokens >= training.max_length:
        raise Unfit(
            f"answers of {policy.max_new_tokens} tokens leave no room for prompts in max_length {training.max_length}",
            "raise training.max_length, or lower policy.max_new_tokens",
        )
