"""Shared by rewards that load a model: their config, their device, and the check of their scores."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from easydistill.config.base import NonEmptyStr, PositiveInt
from easydistill.contracts.reward import UNJUDGED, RewardConfig, RewardContext
from easydistill.models.loading import device, import_torch
from easydistill.models.reference import sees_images

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

LOGGER = logging.getLogger(__name__)
MAX_BATCH_ROWS = 64


class ModelRewardConfig(RewardConfig):
    """The parameters of rewards that load a model."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"max_batch_tokens"})

    model: NonEmptyStr
    """A local directory, a hub id, or another reference to a model."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number type of its weights; `auto` is bfloat16 if the device supports it well."""
    trust_remote_code: bool = False
    """Run the code that comes with the model."""
    max_length: PositiveInt | None = None
    """Maximum tokens of prompt and answer together; longer ones are not judged. Default: the model's own maximum."""
    max_batch_tokens: PositiveInt = 16_384
    """Maximum tokens per batch, including padding."""


class FiniteScores:
    """Turns scores that are not finite into `UNJUDGED`, with a warning for the first one.

    Args:
        name: the reward's, for the warning.
    """

    def __init__(self, name: str) -> None:
        self._name, self._warned = name, False

    def __call__(self, score: float) -> float:
        if math.isfinite(score):
            return score
        if not self._warned:
            self._warned = True
            words = "rewards.%s: the model's score is %s; such answers are not judged (a wider dtype may help)"
            LOGGER.warning(words, self._name, score)
        return UNJUDGED


def choose_device(requested: str | None) -> Any:
    """The requested device, or by default this machine's accelerator or CPU."""
    return import_torch().device(requested) if requested is not None else device()


def vision_of(config: ModelRewardConfig, context: RewardContext) -> Vision | None:
    """What a reward's model sees of the images of prompts; None for a model of text.

    Raises:
        ModelError: its processor cannot be used.
    """
    if context.images is None or not sees_images(config.model):
        return None
    from easydistill.models.multimodal import Vision, load_processor

    return Vision(load_processor(config.model, trust_remote_code=config.trust_remote_code), context.images)


def max_tokens(config: ModelRewardConfig, model_config: Any) -> int | None:
    """The maximum number of tokens of one input; None if nothing limits it."""
    limits = [config.max_length, getattr(model_config.get_text_config(), "max_position_embeddings", None)]
    return min((limit for limit in limits if limit is not None), default=None)
