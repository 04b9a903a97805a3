"""The `signals` section: what is kept of the teacher's distribution over every answer token."""

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
    """What every kind of signal has."""

    drawn: ClassVar[bool] = False
    """Whether chance decides what is kept."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"max_batch_tokens", "shard_tokens"})

    backend: Literal["transformers", "vllm"] = "transformers"
    """Who computes them. vLLM's `prompt_logprobs` are many times slower than a forward pass and give no draws."""
    teachers: Annotated[list[WeightedTeacher], Field(min_length=1)] | None = None
    """Several teachers by weight; by default `models.teacher` alone."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number type of the teacher's weights; `auto` is bfloat16 where the device computes well in it."""
    max_batch_tokens: PositiveInt = 4096
    """Tokens of one forward pass, padding included."""
    shard_tokens: PositiveInt = 32_768
    """Tokens of one file of the store; a kill costs at most one such file."""
    seed: Seed = 0
    """Seed of draws."""


class TopKSignals(_Signals):
    """The k most probable tokens, and the mass of all others as one number."""

    kind: Literal["top_k"]
    """Which kind this is."""
    k: PositiveInt = 16
    """How many tokens are kept."""


class TopPSignals(_Signals):
    """The smallest set of most probable tokens that has `top_p` of the mass."""

    kind: Literal["top_p"]
    """Which kind this is."""
    top_p: PositiveShare = 0.95
    """The mass to be reached."""
    k_max: PositiveInt = 64
    """Most tokens kept."""


class SampledSignals(_Signals):
    """Tokens drawn from the teacher's distribution (random sampling KD, arXiv 2503.16870): unbiased, never a bucket."""

    drawn: ClassVar[bool] = True

    kind: Literal["sampled"]
    """Which kind this is."""
    draws: PositiveInt = 50
    """How many draws a token; equal draws are kept once, with their count."""


class TopKSampledSignals(_Signals):
    """The k most probable tokens exactly, and draws from all the others: unbiased, with little noise."""

    drawn: ClassVar[bool] = True

    kind: Literal["top_k_sampled"]
    """Which kind this is."""
    k: PositiveInt = 12
    """How many tokens are kept exactly."""
    draws: PositiveInt = 12
    """How many draws from the rest."""


class ThresholdSignals(_Signals):
    """Tokens with probability 1/n or more exactly; any other is kept with chance n·p, and then stands for 1/n.

    Unbiased, and of all ways to keep so many tokens the one with the least noise: fixed-threshold sampling
    (Duffield, Lund & Thorup, 2007), drawn systematically.
    """

    drawn: ClassVar[bool] = True

    kind: Literal["threshold"] = "threshold"
    """Which kind this is."""
    n: Annotated[PositiveInt, Field(ge=2, le=4096)] = 128
    """More keeps more tokens, at most n of them."""


DEFAULT_KIND = "threshold"
DRAWN_KINDS = frozenset({"sampled", "top_k_sampled", "threshold"})
"""Kinds in which chance decides what is kept (a test compares this with the classes)."""


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
