"""The `policy` sections of PPO and GRPO: how the student explores, and how it learns from what answers are worth."""

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
    """What PPO and GRPO share. The policy is the student."""

    num_generations: PositiveInt = 1
    """Answers to each prompt."""
    max_new_tokens: PositiveInt = 256
    """Longest answer, in tokens."""
    temperature: Annotated[PositiveFloat, Field(ge=0.05, le=10)] = 1.0
    """Temperature of sampling, and of the probabilities in the loss. Nothing else shapes the distribution: the answers
    must be draws from what is trained."""
    rollouts: Literal["transformers", "vllm"] = "transformers"
    """Who generates. `vllm` shares the training's GPU (TRL's colocate mode) and needs one."""
    steps_per_rollout: PositiveInt = 1
    """Optimiser steps that share the answers of one round: more of them generate less often, in larger batches."""
    num_iterations: PositiveInt = 1
    """Passes over the answers of a round (μ; PPO's epochs)."""
    epsilon: PositiveShare = 0.2
    """ε: the probability of a token may fall by this share before it stops counting."""
    epsilon_high: PositiveFloat | None = None
    """How much it may rise; by default ε."""
    eval_steps: NonNegativeInt = 20
    """Optimiser steps between two measurements on held-out prompts, which are made when the round ends that they fall
    into; 0 measures before and after alone."""
    pass_rate: tuple[Share, Share] = (0.1, 0.9)
    """Rows that bring a `pass_rate` (as `cot_generation` writes it) are trained on if it lies between these: from what
    always or never succeeds there is nothing to learn."""

    @property
    def highest(self) -> float:
        """How much the probability of a token may rise."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

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
    """Group relative policy optimisation (GRPO, arXiv 2402.03300) on TRL, with what DAPO (arXiv 2503.14476) mended.

    A_i = (R_i − mean of the group) / (its standard deviation + 1e-4): each answer against the others to its prompt.
    """

    num_generations: Annotated[int, Field(ge=2)] = 8
    """G: answers to each prompt, which are compared with each other."""
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo"] = "dapo"
    """How tokens are averaged: `dapo` over all of the step, `grpo` over each answer first (favours short ones)."""
    epsilon_high: PositiveFloat | None = None
    """How much the probability of a token may rise before it stops counting; by default 0.28 (DAPO's clip-higher). With
    `cispo` the cap of the ratio itself, by default 5."""
    beta: NonNegativeFloat = 0.0
    """Weight in the loss of the KL divergence from the student as it starts; above 0 a second model is kept."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by: the standard deviation of the group, of the batch, or nothing (Dr. GRPO)."""
    importance_sampling: Literal["token", "sequence"] = "token"
    """`sequence`: one ratio an answer (GSPO, arXiv 2507.18071)."""
    mask_truncated: bool = True
    """Leave answers out of the loss that were cut off."""

    @property
    def highest(self) -> float:
        """How much the probability of a token may rise; the highest ratio of `cispo`."""
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
    """Proximal policy optimisation (PPO, arXiv 1707.06347) with a learned value of every token.

    The reward of a token is −kl_coef (log π_old − log π_ref), and at the answer's end what the answer is worth;
    advantages are GAE's (arXiv 1506.02438).
    """

    num_iterations: PositiveInt = 4
    """Passes over the answers of a round."""
    kl_coef: NonNegativeFloat = 0.05
    """Price of moving away from the student as it starts, per nat of log-probability."""
    gamma: Share = 1.0
    """γ: discount a token."""
    lam: Share = 0.95
    """λ of GAE: 1 waits for the end of the answer, 0 trusts the value of the next token."""
    whiten: bool = True
    """Bring a round's advantages to mean 0 and standard deviation 1."""
    vf_coef: NonNegativeFloat = 0.1
    """Weight of the value's loss beside the policy's."""
    value_clip: PositiveFloat = 0.2
    """How far a value may move from what it was when the answer was written before it stops counting."""
    missing_eos_penalty: NonNegativeFloat = 1.0
    """Taken from the reward of an answer that was cut off."""
    critic: Literal["reward_model", "value_head"] | None = None
    """Who tells values: a copy of `rewards.reward_model` that goes on learning, or a linear layer on the policy itself.
    By default the reward model where there is one with the student's tokens. The saved student holds neither."""
    critic_learning_rate: PositiveFloat = 1e-5
    """Of the critic, constant."""


class PolicyTrainingConfig(TrainerConfig):
    """Training by rewards. Batches count answers, not prompts."""

    num_train_epochs: PositiveFloat = 1.0
    """Passes over the prompts."""
    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate; with `lora` ten times as much is usual."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay."""
    per_device_train_batch_size: Annotated[int, Field(ge=1)] = 8
    """Answers per device and micro-batch."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = 1
    """Micro-batches an optimiser step."""
    max_length: Annotated[int, Field(ge=2)] = 1024
    """Longest prompt with its answer, in tokens; a longer prompt is not trained on."""


def check_rounds(policy: PolicyConfig, training: TrainerConfig) -> None:
    """Make sure that answers come in whole groups.

    Raises:
        Unfit: they do not.
    """
    answers = training.per_device_train_batch_size * training.gradient_accumulation_steps * policy.steps_per_rollout
    if answers % policy.num_generations:
        raise Unfit(
            f"a round has {answers} answers (per_device_train_batch_size × gradient_accumulation_steps × "
            f"steps_per_rollout), which are no whole groups of {policy.num_generations}",
            "make it a multiple of policy.num_generations",
        )
    if policy.max_new_tokens >= training.max_length:
        raise Unfit(
            f"answers of {policy.max_new_tokens} tokens leave no room for prompts in max_length {training.max_length}",
            "raise training.max_length, or lower policy.max_new_tokens",
        )
