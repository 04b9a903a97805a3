"""The `reward_model` section: how a model learns to score answers from pairs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from easydistill.config.base import NonNegativeFloat, PositiveFloat, Section
from easydistill.methods.dpo.config import PairTrainingConfig


class RewardModelConfig(Section):
    """Bradley–Terry training of a model that scores answers (TRL's RewardTrainer).

    loss = −log σ(r_w − r_l − m) + c (r_w + r_l)², a mean over pairs, where r_w is the score of the chosen answer, r_l
    that of the rejected one, m the pair's margin and c `center_rewards_coefficient`.
    """

    center_rewards_coefficient: NonNegativeFloat = 0.01
    """c: keeps scores near 0 (arXiv 2312.09244); the rest of the loss only depends on differences. 0 turns it off."""
    use_margin: bool = False
    """Require the scores of a pair to differ by its `margin` (Llama 2, arXiv 2307.09288), in log-odds like the scores;
    0 for pairs without one. When off, `margin` in a row is ignored, whatever its unit."""


class RewardTrainingConfig(PairTrainingConfig):
    """Training of a reward model on pairs."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate; with `lora` ten times as much is usual."""
    max_length: Annotated[int, Field(ge=2)] = 1024
    """Longest prompt with its answer, in tokens. Longer pairs are rejected, because a score rates whole answers."""
