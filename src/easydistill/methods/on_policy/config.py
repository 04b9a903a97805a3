"""The `on_policy` section: the student generates, the teacher scores every token, the student learns from that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from easydistill.config.base import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Section,
    Share,
    Unfit,
)

Objective = Literal["generalized_jsd", "sampled_reverse_kl", "top_k_reverse_kl"]

_BELONGS: dict[str, Objective] = {
    "beta": "generalized_jsd",
    "beta_answers": "generalized_jsd",
    "kl_mix": "generalized_jsd",
    "kd_steps": "generalized_jsd",
    "temperature": "generalized_jsd",
    "rollout_temperature": "generalized_jsd",
    "ratio_clip": "sampled_reverse_kl",
    "top_k": "top_k_reverse_kl",
}
"""Fields that only one objective reads; with the other, they must be left at their default."""
FORMER_BETA = 0.5
"""The default of `beta` before there was a choice by the student. Accepted, and part of identities, where it does
nothing."""


class OnPolicyConfig(Section):
    """On-policy distillation (GKD, arXiv 2306.13649; MiniLLM, arXiv 2306.08543).

    Every optimiser step takes `per_device_train_batch_size` × `gradient_accumulation_steps` prompts of the training
    rows. The student answers a share of them; the rest come with the teacher's answer.
    """

    runtime_only: ClassVar[frozenset[str]] = frozenset({"vllm_gpu_memory_utilization"})
    recorded_for_none: ClassVar[Mapping[str, Any]] = {"beta": FORMER_BETA}

    objective: Objective = "generalized_jsd"
    """`generalized_jsd` compares the probabilities of all tokens and needs the teacher on this machine.
    `sampled_reverse_kl` needs only those of the tokens that the student wrote, from a teacher here or behind a vLLM
    server. `top_k_reverse_kl` needs those of the teacher's `top_k` most probable tokens too, from either, and is less
    noisy: where the other learns from one token, it learns from all of these."""
    rollout_share: Share = 0.5
    """λ: share of the answers that the student writes itself (rollouts); the others are the teacher's. From those,
    `generalized_jsd` learns by the same divergence, the other objectives by fine-tuning (cross-entropy)."""
    beta: Share | None = None
    """generalized_jsd: 0 is forward KL, 1 is reverse KL, values in between are β KL(p_T‖m) + (1−β) KL(p_S‖m) with m = β
    p_T + (1−β) p_S. Between the ends the loss is smaller: at 0.01 it is about a hundredth of that at 0, and so is each
    step. Compare values far from the ends, or change the learning rate with them. By default the student's first
    answers decide: 0 if it is too weak to write (random words, repetition, answers without an end) and without
    rollouts, else 0.5."""
    beta_answers: Share | None = None
    """generalized_jsd: β on the teacher's answers; by default as on the student's own."""
    kl_mix: Share | None = None
    """generalized_jsd: α; if given, the divergence on the student's own answers is
    α KL(p_T‖p_S) + (1−α) KL(p_S‖p_T) instead of the one that `beta` names."""
    temperature: Annotated[PositiveFloat, Field(ge=0.05, le=10)] = 1.0
    """generalized_jsd: temperature of both distributions in the loss; of the student's sampling too, unless
    `rollout_temperature` sets that."""
    rollout_temperature: Annotated[PositiveFloat, Field(ge=0.05, le=10)] | None = None
    """generalized_jsd: temperature at which the student writes. Below 1, a student that is still weak writes answers
    that its teacher can make something of. The other objectives are right only at 1."""
    max_new_tokens: PositiveInt = 256
    """Longest answer of the student, in tokens."""
    max_new_tokens_start: PositiveInt | None = None
    """Begin with short answers: the limit of the first rollouts, which then grows to `max_new_tokens`. Early steps cost
    less, and what a weak student writes far from its prompt teaches least. No end is learned behind an answer that is
    cut by the limit."""
    max_new_tokens_growth: PositiveShare = 0.5
    """Share of the steps with rollouts over which the limit grows, evenly."""
    ratio_clip: PositiveShare = 0.2
    """sampled_reverse_kl: ε of PPO's clip. A token stops counting once its probability has changed by this share since
    it was sampled; has an effect from the second step on a rollout."""
    top_k: PositiveInt = 16
    """top_k_reverse_kl: how many of the teacher's most probable tokens are compared one by one, and all others as one.
    A vLLM server gives 20 at most, unless it was started with another `--max-logprobs`."""
    steps_per_rollout: PositiveInt = 1
    """Optimiser steps per rollout. More steps generate less often, in larger batches, and train on answers of a
    slightly older student."""
    rollouts: Literal["transformers", "vllm"] = "transformers"
    """The engine that generates the student's answers. `vllm` runs in the training's process and takes over the
    student's weights before each round of answers; one process trains."""
    vllm_gpu_memory_utilization: PositiveShare = 0.3
    """vllm: share of the GPU's memory that its engine takes, beside teacher and training."""
    sft_steps: NonNegativeInt = 0
    """Number of steps of fine-tuning on the teacher's answers that come first. For a student that cannot answer yet,
    for instance after layers were removed: what its teacher thinks of random words teaches little."""
    kd_steps: NonNegativeInt = 0
    """generalized_jsd: for so many steps at the beginning the student does not write; it learns the teacher's
    probabilities (forward KL) for the teacher's answers. They count among `max_steps` and share the schedule of the
    learning rate."""

    @property
    def rollouts_at(self) -> float:
        """The temperature of the student's sampling."""
        return self.temperature if self.rollout_temperature is None else self.rollout_temperature

    @property
    def learns_answers(self) -> bool:
        """Whether the teacher's own answers are learned, too."""
        return self.rollout_share < 1 or self.sft_steps > 0 or self.kd_steps > 0

    @property
    def fits_beta(self) -> bool:
        """Whether the student's first answers decide about `beta`."""
        return self.objective == "generalized_jsd" and self.beta is None and self.kl_mix is None

    def identity(self) -> dict[str, Any]:
        """As of every section; None is no longer what it was recorded as where the student decides."""
        return super().identity() | ({"beta": "by the student"} if self.fits_beta else {})

    @model_validator(mode="after")
    def _only_what_the_objective_reads(self) -> OnPolicyConfig:
        for name, objective in _BELONGS.items():
            given = getattr(self, name) != type(self).model_fields[name].default
            if name == "beta":
                given = self.beta not in (None, FORMER_BETA)
            if given and objective != self.objective:
                raise Unfit(
                    f"`{name}` has no effect with the objective {self.objective}",
                    f'remove {name}, or set "objective": "{objective}"',
                )
        if self.kl_mix is not None and self.beta is not None:
            raise Unfit("`beta` and `kl_mix` both name the divergence on the student's own answers", "remove one")
        start = self.max_new_tokens_start
        if start is not None and start >= self.max_new_tokens:
            problem = f"`max_new_tokens_start` ({start}) is not below `max_new_tokens` ({self.max_new_tokens})"
            raise Unfit(problem, "lower it, or remove it")
        if start is None and self.max_new_tokens_growth != type(self).model_fields["max_new_tokens_growth"].default:
            raise Unfit("`max_new_tokens_growth` has no effect alone", "set max_new_tokens_start")
        name = "vllm_gpu_memory_utilization"
        if self.rollouts != "vllm" and getattr(self, name) != type(self).model_fields[name].default:
            raise Unfit(f"`{name}` has no effect without vLLM", 'set "rollouts": "vllm"')
        return self
