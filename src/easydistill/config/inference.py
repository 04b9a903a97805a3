"""The `inference` section: how a teacher is asked. Each backend has a class of its own; here are the built-in ones.

Which class a section is of follows from its `backend` (`easydistill.teachers.inference_section`).
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from easydistill.config.base import (
    AnyInt,
    NonEmptyStr,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Secret,
    Section,
    Seed,
    Unfit,
)
from easydistill.config.values import show

Truncation = Literal["keep", "reject"]


class SamplingConfig(Section):
    """The system prompt and the sampling of answers: common to all models that are asked."""

    system_prompt: str | None = None
    """Sent to the teacher before each row that has no system message of its own. Not part of training rows."""
    max_new_tokens: PositiveInt = 512
    """Longest answer, in the teacher's tokens."""
    top_p: PositiveShare | None = None
    """Nucleus sampling: draw from the smallest set of tokens with this much probability."""
    truncation: Truncation = "keep"
    """Whether an answer cut off at `max_new_tokens` is kept as it is, or becomes a rejected row `truncated`."""

    def sampling(self) -> dict[str, Any]:
        """The values that affect an answer apart from model and messages, for request keys.

        The model's location and name are part of the teacher's identity, the system prompt of the messages.
        """
        elsewhere = {"base_url", "model", "backend", "trust_remote_code", "system_prompt", "truncation"}
        return {name: value for name, value in self.identity().items() if name not in elsewhere}


class InferenceConfig(SamplingConfig):
    """The `inference` section of one backend. Subclasses declare `backend` as a literal without default."""

    needs_model: ClassVar[bool] = True
    """Whether the teacher is the model named in `models`; if not, the section itself names it."""
    scores: ClassVar[bool] = False
    """Whether the teacher can give log-probabilities of given tokens. That requires its weights on this machine (a
    `LocalInferenceConfig`), or a vLLM server."""

    backend: str
    """The backend that runs the teacher."""


class PricesConfig(Section):
    """What a teacher's tokens cost, per million, in any currency."""

    input: NonNegativeFloat
    """A million tokens of prompts."""
    output: NonNegativeFloat
    """A million tokens of answers, thoughts included."""
    cached_input: NonNegativeFloat | None = None
    """A million prompt tokens that the server had in its cache; by default as `input`."""


class BatchConfig(Section):
    """Rows sent as files through OpenAI's Batch API: answered within hours, at many servers for less money. Prices are
    taken as given in `prices`: put the batch price there."""

    completion_window: NonEmptyStr = "24h"
    """Time within which the server should answer; OpenAI knows `24h` only."""
    poll_interval: PositiveFloat = 30.0
    """Seconds between two looks at batches under way."""
    max_requests: PositiveInt = 50_000
    """Most rows in one batch."""
    max_bytes: PositiveInt = 200_000_000
    """Largest file of one batch, in bytes; a row that is longer alone is rejected."""
    max_rounds: PositiveInt = 3
    """How often a row is submitted before it counts as failed, where batches expire, are cancelled or leave it out."""


class ApiInferenceConfig(InferenceConfig):
    """A teacher behind any OpenAI-compatible chat API."""

    needs_model: ClassVar[bool] = False
    scores: ClassVar[bool] = True
    runtime_only: ClassVar[frozenset[str]] = frozenset(
        {
            "backend",
            "timeout",
            "max_retries",
            "max_concurrency",
            "adaptive_concurrency",
            "requests_per_minute",
            "tokens_per_minute",
            "prices",
            "max_cost",
            "max_tokens_total",
            "stream",
            "max_retry_wait",
            "batch",
        }
    )

    backend: Literal["openai"] = "openai"
    """An OpenAI-compatible API; the default if `base_url` is given."""
    base_url: NonEmptyStr | list[NonEmptyStr]
    """Root of the API, usually ending in `/v1`; or a list of servers of the same model, which share the work.
    The answers of several are known by the model alone: servers may be added, removed and reordered, and nothing is
    asked twice."""
    api_key: Secret = Secret("EMPTY")
    """The key; write `"${env:NAME}"` to take it from the environment. It is never printed or stored."""
    model: NonEmptyStr | None = None
    """Name of the model at the API; by default the first that `/models` lists."""
    stream: bool = False
    """Receive answers token by token: a stalled connection is noticed sooner."""
    temperature: NonNegativeFloat | None = None
    """Sampling temperature; by default the server's."""
    seed: AnyInt | None = None
    """Sent to the server, which may or may not honour it."""
    max_concurrency: PositiveInt = 256
    """Most requests under way at once, over all servers."""
    adaptive_concurrency: bool = True
    """Find out how many requests at once serve best, up to `max_concurrency`: more while answers come as fast as ever,
    fewer when the server refuses (429, 503) or slows down. Off: always `max_concurrency`."""
    requests_per_minute: PositiveInt | None = None
    """Requests started a minute at most, repetitions included, over all servers and spread evenly."""
    tokens_per_minute: PositiveInt | None = None
    """Tokens a minute at most, prompts and answers together, over all servers: estimated before a request is sent,
    corrected by the server's count."""
    prices: PricesConfig | None = None
    """What tokens cost, for the ledger and `max_cost`; without it the cost is unknown."""
    max_cost: PositiveFloat | None = None
    """Budget, in the currency of `prices`: no request starts that might exceed it. Answers on disk count."""
    max_tokens_total: PositiveInt | None = None
    """Budget in tokens, prompts and answers together: no request starts that might exceed it. Answers on disk count."""
    timeout: PositiveFloat = 300.0
    """Seconds without a byte from the server before a request is given up and tried again."""
    max_retries: NonNegativeInt = 6
    """How often a request is repeated after a passing fault (429, 5xx, time-out, broken connection)."""
    max_retry_wait: PositiveFloat = 60.0
    """Longest pause before a repetition, in seconds, unless the server's Retry-After asks for more."""
    batch: BatchConfig | None = None
    """Ask through the server's Batch API; `{}` takes the defaults. It can be set or dropped at any time: answers stay,
    and batches under way are waited for either way."""

    @property
    def base_urls(self) -> tuple[str, ...]:
        """All servers."""
        return (self.base_url,) if isinstance(self.base_url, str) else tuple(self.base_url)

    @model_validator(mode="after")
    def _has_prices(self) -> ApiInferenceConfig:
        if self.max_cost is not None and self.prices is None:
            raise Unfit("max_cost needs to know what tokens cost", 'set "prices": {"input": …, "output": …}')
        return self

    @model_validator(mode="after")
    def _fits_batches(self) -> ApiInferenceConfig:
        if self.batch is None:
            return self
        if len(self.base_urls) > 1:
            raise Unfit("a batch is at one server, and base_url lists several", "name one server, or drop `batch`")
        alone = ("stream", "requests_per_minute", "tokens_per_minute", "max_concurrency", "adaptive_concurrency")
        given = [name for name in alone if getattr(self, name) != type(self).model_fields[name].default]
        if given:
            raise Unfit(f"{', '.join(given)} can do nothing for rows sent as batches", "drop it, or drop `batch`")
        return self

    @field_validator("base_url")
    @classmethod
    def _are_urls(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, str):
            return cls._url(value)
        if not value:
            raise Unfit("the list is empty", "give a value, e.g. http://localhost:8000/v1")
        urls = [cls._url(url) for url in value]
        twice = next((url for number, url in enumerate(urls) if url in urls[:number]), None)
        if twice is not None:
            raise Unfit(f"{show(twice)} stands there twice", "name each server once")
        return urls

    @staticmethod
    def _url(value: str) -> str:
        if not re.match(r"https?://[^/\s]+", value) and value != "ENDPOINT":
            raise Unfit(
                f"{show(value)} is not a URL", "start it with http:// or https://, e.g. http://localhost:8000/v1"
            )
        return value.rstrip("/")


class LocalInferenceConfig(InferenceConfig):
    """A teacher on this machine; common to the backends that run one."""

    scores: ClassVar[bool] = True

    temperature: NonNegativeFloat = 0.8
    """Sampling temperature; 0 is greedy."""
    top_k: PositiveInt | None = None
    """Draw only from the k most probable tokens."""
    seed: Seed = 777
    """Seed of the answers."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number type of the teacher's weights; `auto` is bfloat16 where the device computes well in it."""
    trust_remote_code: bool = False
    """Run code that comes with the teacher's weights."""
    max_model_len: PositiveInt | None = None
    """Longest prompt plus answer, in tokens; longer prompts are rejected rows."""

    @field_validator("temperature")
    @classmethod
    def _temperature(cls, value: float) -> float:
        if 0 < value < 1e-3:
            raise Unfit(f"{value} is too small to divide by", "use 0 for greedy answers, or at least 0.001")
        return value


class TransformersOptions(LocalInferenceConfig):
    """A local teacher's keys, and those of transformers."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"batch_size", "max_batch_tokens"})

    batch_size: PositiveInt | None = None
    """transformers: rows generated together; by default chosen from the rows' lengths and `max_batch_tokens`."""
    max_batch_tokens: PositiveInt = 16_384
    """transformers: prompt and answer tokens that one batch may hold."""


class VllmOptions(LocalInferenceConfig):
    """A local teacher's keys, and those of vLLM, named as in the paper's sample configs."""

    runtime_only: ClassVar[frozenset[str]] = frozenset(
        {
            "gpu_memory_utilization",
            "enforce_eager",
            "enable_chunked_prefill",
            "chunk_size",
            "tensor_parallel_size",
        }
    )

    chunk_size: PositiveInt = 256
    """vLLM: rows under way at once. Each answer is on disk the moment it is complete."""
    enable_chunked_prefill: bool | None = None
    """vLLM: split long prompts over several steps."""
    gpu_memory_utilization: PositiveShare = 0.9
    """vLLM: share of GPU memory to take."""
    enforce_eager: bool | None = None
    """vLLM: no compiled graphs; by default so on CPUs only, where compiling costs more than it gains."""
    tensor_parallel_size: NonNegativeInt | None = None
    """vLLM: GPUs that share one copy of the teacher; by default all of them."""


class AnyLocalOptions(TransformersOptions, VllmOptions):
    """Keys of every backend on this machine. Those of another backend than the chosen one have no effect; they are
    accepted so that changing `backend` is all it takes to go from one to the other."""

    runtime_only: ClassVar[frozenset[str]] = TransformersOptions.runtime_only | VllmOptions.runtime_only


class TransformersInferenceConfig(AnyLocalOptions):
    """A teacher in this process, through transformers."""

    backend: Literal["transformers"]
    """In this process, through transformers."""


class VllmInferenceConfig(AnyLocalOptions):
    """A teacher in vLLM's engine, on this machine."""

    backend: Literal["vllm"]
    """vLLM's engine on this machine."""


class AutoInferenceConfig(AnyLocalOptions):
    """A teacher on this machine, through vLLM where it is installed, else through transformers."""

    backend: Literal["auto"] = "auto"
    """vLLM if it is installed, else transformers."""


class WhiteBoxInferenceConfig(LocalInferenceConfig):
    """A teacher on this machine whose distributions are stored too. Combined with the section of each backend."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"top_logits_num"})

    top_logits_num: PositiveInt | None = None
    """The paper's name: keep this many most probable tokens, as `signals: {"kind": "top_k", "k": …}` does."""


def through_transformers(config: LocalInferenceConfig) -> TransformersInferenceConfig:
    """The same settings for transformers, as far as it has them."""
    known = TransformersInferenceConfig.model_fields.keys() & type(config).model_fields.keys() - {"backend"}
    return TransformersInferenceConfig(backend="transformers", **{name: getattr(config, name) for name in known})
