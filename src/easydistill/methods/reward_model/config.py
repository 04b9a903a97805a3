"""The `reward_model` section: how a model learns to score answers from pairs of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from easydistill.config.base import NonNegativeFloat, PositiveFloat, Section
from easydistill.methods.dpo.config import PairTrainingConfig


class RewardModelConfig(Section):
    """Bradley–Terry training of a model that gives an answer one number (TRL's RewardTrainer).

    loss = −log σ(r_w − r_l − m) + c (r_w + r_l)², a mean over pairs, where r_w is the score of the chosen answer, r_l
    that of the rejected one, m the pair's margin and c the centring.
    """

    center_rewards_coefficient: NonNegativeFloat = 0.01
    """c: keeps scores near 0 (arXiv 2312.09244). The rest of the loss only knows differences. 0 leaves it out."""
    use_margin: bool = False
    """Ask of each pair's scores that they differ by its `margin` (Llama 2, arXiv 2307.09288), in the score's unit,
    log-odds; 0 where a pair has none. Off, a `margin` in a row is left alone: it may be in any unit."""


class RewardTrainingConfig(PairTrainingConfig):
    """Training of a reward model on pairs."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate; with `lora` ten times as much is usual."""
    max_length: Annotated[int, Field(ge=2)] = 1024
    """Longest prompt with its answer, in tokens. A pair with a longer one is rejected: a score is of whole answers."""
