"""The `signals` section: what is kept of the teacher's distribution for every answer token."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from easydistill.config.base import PositiveFloat, PositiveInt, PositiveShare, Section, Seed
from easydistill.config.models import ModelRef


class WeightedTeacher(Section):
    """One of several teachers whose distributions are mixed."""

    model: ModelRef
    """The teacher; it must have the student's vocabulary."""
    weight: PositiveFloat = 1.0
    """Its share in the mixture, relative to the others."""


class _Signals(Section):
    """What all kinds of signals share."""

    drawn: ClassVar[bool] = False
    """Whether the kept tokens are sampled."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"max_batch_tokens", "shard_tokens"})

    backend: Literal["transformers", "vllm"] = "transformers"
    """The engine that computes them. vLLM gives the most probable tokens only: `top_k` signals at temperature 1, of one
    teacher with the student's vocabulary."""
    teachers: Annotated[list[WeightedTeacher], Field(min_length=1)] | None = None
    """Several teachers, mixed by weight; defaults to `models.teacher` alone."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Data type of the teacher's weights; `auto` is bfloat16 where the device is fast in it, else float32."""
    max_batch_tokens: PositiveInt | None = None
    """Most tokens of one forward pass, padding included; by default 4,096, and 8,192 on a GPU."""
    shard_tokens: PositiveInt = 32_768
    """Tokens per file of the store; a killed run loses at most one such file."""
    seed: Seed = 0
    """Seed of the draws."""


class TopKSignals(_Signals):
    """The k most probable tokens, and the total probability of all others."""

    kind: Literal["top_k"]
    """The kind of signal."""
    k: PositiveInt = 16
    """Number of tokens to keep."""


class TopPSignals(_Signals):
    """The smallest set of most probable tokens with a total probability of `top_p`."""

    kind: Literal["top_p"]
    """The kind of signal."""
    top_p: PositiveShare = 0.95
    """The probability to reach."""
    k_max: PositiveInt = 64
    """Most tokens to keep."""


class SampledSignals(_Signals):
    """Tokens drawn at random by the teacher's probabilities, which they represent on average (random sampling KD, arXiv
    2503.16870). Nothing else is kept."""

    drawn: ClassVar[bool] = True

    kind: Literal["sampled"]
    """The kind of signal."""
    draws: PositiveInt = 50
    """Draws per token; equal draws are stored once, with their count."""


class TopKSampledSignals(_Signals):
    """The k most probable tokens with their probabilities, and random draws from all others, which represent these on
    average."""

    drawn: ClassVar[bool] = True

    kind: Literal["top_k_sampled"]
    """The kind of signal."""
    k: PositiveInt = 12
    """Number of tokens to keep exactly."""
    draws: PositiveInt = 12
    """Number of draws from the rest."""


class ThresholdSignals(_Signals):
    """Every token with a probability p of at least 1/n, with its p, and a random sample of the others.

    Each of the others is kept with a chance of n·p and then counts as 1/n: with n = 100, a token of 0.3 % is kept with
    a chance of 30 % and stored as 1 %, so on average it has its true probability. No other way of keeping as many
    tokens is less noisy: fixed-threshold sampling (Duffield, Lund & Thorup, 2007), drawn systematically.
    """

    drawn: ClassVar[bool] = True

    kind: Literal["threshold"] = "threshold"
    """The kind of signal."""
    n: Annotated[PositiveInt, Field(ge=2, le=4096)] = 128
    """A larger n keeps more tokens, at most n of them."""


DEFAULT_KIND = "threshold"
DRAWN_KINDS = frozenset({"sampled", "top_k_sampled", "threshold"})
"""Kinds whose kept tokens are sampled (a test compares this with the classes)."""


def _kind(value: Any) -> str:
    named = value.get("kind", DEFAULT_KIND) if isinstance(value, dict) else getattr(value, "kind", DEFAULT_KIND)
    return str(named)


SignalsConfig = Annotated[
    Annotated[TopKSignals, Tag("top_k")]
    | Annotated[TopPSignals, Tag("top_p")]
    | Annotated[SampledSignals, Tag("sampled")]
    | Annotated[TopKSampledSignals, Tag("top_k_sampled")]
    | Annotated[ThresholdSignals, Tag("threshold")],
    Discriminator(_kind),
]
