"""A penalty for answers outside a range of lengths, from −1 to 0; n is the number of tokens, including the end token.

Too long (the soft overlong punishment of DAPO, arXiv 2503.14476), with L = `max_tokens` and B = `buffer`:

    0                 n ≤ L − B
    (L − B − n) / B   L − B < n ≤ L
    −1                n > L

Too short, with M = `min_tokens`: (n − M) / M for n < M, so −1 for an empty answer. Whether the answer ended makes no
difference: with `max_tokens` at the generation limit and a buffer, an answer that was cut off gets −1.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import model_validator

from easydistill.config.base import NonNegativeInt, PositiveInt, Unfit
from easydistill.contracts.reward import Reward, RewardConfig, RewardContext, Rollout


class Config(RewardConfig):
    """A penalty, down to −1, for answers outside a range of tokens."""

    identity_name = "reward.length"

    min_tokens: NonNegativeInt = 0
    """Shorter answers are penalised in proportion to what is missing."""
    max_tokens: PositiveInt | None = None
    """Longer answers get the full penalty."""
    buffer: NonNegativeInt = 0
    """Number of tokens before `max_tokens` over which the penalty grows from 0 to −1."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Config:
        if self.max_tokens is None:
            if not self.min_tokens:
                raise Unfit("every length is allowed", "set max_tokens (and buffer), or min_tokens")
            if self.buffer:
                raise Unfit("buffer has no meaning without max_tokens", "set max_tokens, or remove buffer")
        elif self.min_tokens > self.max_tokens - self.buffer:
            unpenalised = self.max_tokens - self.buffer
            raise Unfit(
                f"no length is without penalty: at least {self.min_tokens} tokens, at most {unpenalised} "
                f"({self.max_tokens} minus a buffer of {self.buffer})",
                "lower min_tokens or buffer, or raise max_tokens",
            )
        return self


def make(config: Config, context: RewardContext) -> Reward:
    return _Length(config)


class _Length:
    def __init__(self, config: Config) -> None:
        self._config = config

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        return [penalty(self._config, len(rollout.answer_ids)) for rollout in rollouts]

    def close(self) -> None:
        """Nothing to release."""


def penalty(config: Config, tokens: int) -> float:
    """The formula at the top of this module; −1 … 0."""
    if tokens < config.min_tokens:
        return (tokens - config.min_tokens) / config.min_tokens
    if config.max_tokens is None or tokens <= config.max_tokens - config.buffer:
        return 0.0
    if tokens > config.max_tokens:
        return -1.0
    return (config.max_tokens - config.buffer - tokens) / config.buffer
