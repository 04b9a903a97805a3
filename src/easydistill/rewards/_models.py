"""What rewards that are models share: how they are loaded, and where they compute."""

from __future__ import annotations

import logging
import math
from typing import Any, ClassVar, Literal

from easydistill.config.base import NonEmptyStr, PositiveInt
from easydistill.contracts.reward import UNJUDGED, RewardConfig
from easydistill.models.loading import device, import_torch

LOGGER = logging.getLogger(__name__)
MAX_BATCH_ROWS = 64


class ModelRewardConfig(RewardConfig):
    """What rewards that are models have."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"max_batch_tokens"})

    model: NonEmptyStr
    """A local directory, a hub id, or another reference to a model."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number type of its weights; `auto` is bfloat16 where the device computes well in it."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    max_length: PositiveInt | None = None
    """Longest prompt and answer together, in its tokens; longer ones are not judged. Default: what the model takes."""
    max_batch_tokens: PositiveInt = 16_384
    """Tokens, padding included, that it reads at once."""


class FiniteScores:
    """Turns a score that is no finite number into `UNJUDGED`, and says so once.

    Args:
        name: of the reward.
    """

    def __init__(self, name: str) -> None:
        self._name, self._told = name, False

    def __call__(self, score: float) -> float:
        if math.isfinite(score):
            return score
        if not self._told:
            self._told = True
            words = "rewards.%s: the model gave %s as a score; such answers are not judged (a wider dtype may help)"
            LOGGER.warning(words, self._name, score)
        return UNJUDGED


def place(wanted: str | None) -> Any:
    """The device to compute on: as wanted, else this machine's accelerator or CPU."""
    return import_torch().device(wanted) if wanted is not None else device()


def room(config: ModelRewardConfig, model_config: Any) -> int | None:
    """Most tokens that the model may be given; None where nothing limits them."""
    limits = [config.max_length, getattr(model_config.get_text_config(), "max_position_embeddings", None)]
    return min((limit for limit in limits if limit is not None), default=None)
