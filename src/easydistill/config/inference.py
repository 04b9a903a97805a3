"""The `inference` section: which backend runs the teacher, and how answers are sampled.

Each backend has a class of its own, selected by the section's `backend` (see `easydistill.teachers.sections`); the
built-in ones are here.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal, Self

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
from easydistill.config.dataset import TemplateVariables
from easydistill.config.device_map import DeviceMap
from easydistill.config.images import ImageConfig, LocalImageConfig
from easydistill.config.known_prices import KnownPrice, known_price
from easydistill.config.values import show

Truncation = Literal["keep", "reject"]
Thoughts = Literal["apart", "inline"]


class SamplingConfig(Section):
    """System prompt and sampling settings of every model that answers prompts."""

    system_prompt: str | None = None
    """Sent to the teacher before each row that has no system message of its own. Not part of training rows."""
    max_new_tokens: PositiveInt = 512
    """Longest answer, in the teacher's tokens."""
    top_p: PositiveShare | None = None
    """Nucleus sampling: draw from the smallest set of most probable tokens with at least this total probability."""
    truncation: Truncation = "keep"
    """What to do with an answer that was cut off at `max_new_tokens`: `keep` it, without teaching the student to stop
    there, or `reject` its row as `truncated`."""
    thoughts: Thoughts = "apart"
    """What to do with thoughts that are part of an answer's text, such as `<think>…</think>` at its beginning: move
    them to the message's `reasoning_content`, where thoughts that a server sends apart are too, or leave them in the
    text as they were written."""

    def sampling(self) -> dict[str, Any]:
        """The values that affect an answer, apart from model and messages, for request keys.

        The model's location and name belong to the teacher's identity, the system prompt to the messages.
        """
        elsewhere = {"base_url", "model", "backend", "trust_remote_code", "system_prompt", "truncation", "thoughts"}
        elsewhere.add("image")
        return {name: value for name, value in self.identity().items() if name not in elsewhere}

    def image_identity(self) -> dict[str, Any]:
        """How images are sent, for fingerprints and the keys of requests with images; nothing at the defaults."""
        return {}

    def reading(self) -> dict[str, Any]:
        """How answers become labels, for fingerprints: what differs from the defaults."""
        ways = {"truncation": self.truncation, "thoughts": self.thoughts}
        return {name: way for name, way in ways.items() if way != SamplingConfig.model_fields[name].default}


class InferenceConfig(SamplingConfig):
    """The `inference` section of one backend. Subclasses declare `backend` as a literal."""

    needs_model: ClassVar[bool] = True
    """Whether the teacher is the model named in `models`; otherwise the section itself names it."""
    scores: ClassVar[bool] = False
    """Whether the teacher can return log-probabilities of given tokens. That needs its weights on this machine (a
    `LocalInferenceConfig`) or a vLLM server."""

    backend: str
    """The backend that runs the teacher."""


class PricesConfig(Section):
    """Prices of the teacher's tokens, per million, in any currency."""

    input: NonNegativeFloat
    """Price of a million prompt tokens."""
    output: NonNegativeFloat
    """Price of a million answer tokens, reasoning included."""
    cached_input: NonNegativeFloat | None = None
    """Price of a million prompt tokens read from the server's cache; defaults to `input`."""


class BatchConfig(Section):
    """Sends rows as files through OpenAI's Batch API: answers take hours, and many servers charge less. The cost is
    computed from `prices`, so put the batch price there."""

    completion_window: NonEmptyStr = "24h"
    """Time within which the server should answer; OpenAI accepts only `24h`."""
    poll_interval: PositiveFloat = 30.0
    """Seconds between checks of the batches in progress."""
    max_requests: PositiveInt = 50_000
    """Most rows in one batch."""
    max_bytes: PositiveInt = 200_000_000
    """Largest file of one batch, in bytes; a single row that exceeds it is rejected."""
    max_rounds: PositiveInt = 3
    """How often a row is submitted before it counts as failed, when batches expire, are cancelled or omit it."""


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
    With several servers, answers are identified by the model alone: servers can be added, removed and reordered, and
    nothing is asked twice."""
    api_key: Secret = Secret("EMPTY")
    """The API key; write `"${env:NAME}"` to read it from the environment. It is never printed or stored."""
    model: NonEmptyStr | None = None
    """Name of the model at the API; defaults to the first one that `/models` lists."""
    stream: bool = False
    """Receive answers token by token, so that a stalled connection is noticed sooner."""
    temperature: NonNegativeFloat | None = None
    """Sampling temperature; defaults to the server's."""
    seed: AnyInt | None = None
    """Seed sent to the server, which may ignore it."""
    max_concurrency: PositiveInt = 256
    """Most requests in flight at once, over all servers."""
    adaptive_concurrency: bool = True
    """Adapt the number of concurrent requests, up to `max_concurrency`: more while answers keep coming as fast, fewer
    when the server refuses (429, 503) or slows down. If false, always use `max_concurrency`."""
    requests_per_minute: PositiveInt | None = None
    """Most requests started per minute, retries included, over all servers and spread evenly."""
    tokens_per_minute: PositiveInt | None = None
    """Most tokens per minute, prompts and answers together, over all servers: estimated before a request is sent,
    corrected by the server's count."""
    chat_template_kwargs: TemplateVariables | None = None
    """Variables for the server's chat template, such as `{"enable_thinking": false}`, sent as `chat_template_kwargs`,
    which vLLM and SGLang know. A row's own variables take precedence."""
    prices: PricesConfig | None = None
    """Prices of tokens, for the report and `max_cost`. Without them well-known models at their makers' APIs have
    built-in prices, each as of a date (docs/teachers.md); of others the cost is unknown."""
    max_cost: PositiveFloat | None = None
    """Budget, in the currency of `prices`: no request starts that might exceed it. Answers already on disk count."""
    max_tokens_total: PositiveInt | None = None
    """Budget in tokens, prompts and answers together: no request starts that might exceed it. Answers already on disk
    count."""
    timeout: PositiveFloat = 300.0
    """Seconds without a byte from the server before a request is abandoned and retried."""
    max_retries: NonNegativeInt = 6
    """How often a request is retried after a transient error (429, 5xx, timeout, broken connection)."""
    max_retry_wait: PositiveFloat = 60.0
    """Longest wait before a retry, in seconds, unless the server's Retry-After asks for more."""
    image: ImageConfig | None = None
    """How images are sent; by default as they are."""
    batch: BatchConfig | None = None
    """Use the server's Batch API; `{}` takes the defaults. It can be set or removed at any time: answers stay valid,
    and batches in progress are collected either way."""

    @property
    def base_urls(self) -> tuple[str, ...]:
        """All servers."""
        return (self.base_url,) if isinstance(self.base_url, str) else tuple(self.base_url)

    @property
    def built_in_price(self) -> KnownPrice | None:
        """The model's built-in price, where the section gives none. Batches have prices of their own."""
        return known_price(self.base_urls, self.model) if self.prices is None and self.batch is None else None

    @property
    def token_prices(self) -> PricesConfig | None:
        """The section's prices, else the model's built-in ones, else None."""
        known = self.built_in_price
        if known is None:
            return self.prices
        return PricesConfig(input=known.input, output=known.output, cached_input=known.cached_input)

    @property
    def images_sent(self) -> ImageConfig:
        """How images are sent."""
        return self.image or ImageConfig()

    def image_identity(self) -> dict[str, Any]:
        return self.images_sent.identity()

    @model_validator(mode="after")
    def _has_prices(self) -> ApiInferenceConfig:
        if self.max_cost is not None and self.token_prices is None:
            raise Unfit("max_cost needs to know what tokens cost", 'set "prices": {"input": …, "output": …}')
        return self

    @model_validator(mode="after")
    def _fits_batches(self) -> ApiInferenceConfig:
        if self.batch is None:
            return self
        if len(self.base_urls) > 1:
            raise Unfit("a batch runs on one server, but base_url lists several", "name one server, or drop `batch`")
        unbatched = ("stream", "requests_per_minute", "tokens_per_minute", "max_concurrency", "adaptive_concurrency")
        given = [name for name in unbatched if getattr(self, name) != type(self).model_fields[name].default]
        if given:
            raise Unfit(f"{', '.join(given)} has no effect on rows sent as batches", "drop it, or drop `batch`")
        return self

    @field_validator("base_url")
    @classmethod
    def _are_urls(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, str):
            return cls._url(value)
        if not value:
            raise Unfit("the list is empty", "give a value, e.g. http://localhost:8000/v1")
        urls = [cls._url(url) for url in value]
        repeated = next((url for number, url in enumerate(urls) if url in urls[:number]), None)
        if repeated is not None:
            raise Unfit(f"{show(repeated)} is listed twice", "name each server once")
        return urls

    @staticmethod
    def _url(value: str) -> str:
        if not re.match(r"https?://[^/\s]+", value) and value != "ENDPOINT":
            raise Unfit(
                f"{show(value)} is not a URL", "start it with http:// or https://, e.g. http://localhost:8000/v1"
            )
        return value.rstrip("/")


class LocalInferenceConfig(InferenceConfig):
    """A teacher on this machine: what the local backends share."""

    # The template's text is part of the teacher's identity; where the file is does not matter.
    runtime_only: ClassVar[frozenset[str]] = frozenset({"template"})
    scores: ClassVar[bool] = True

    temperature: NonNegativeFloat = 0.8
    """Sampling temperature; 0 is greedy."""
    top_k: PositiveInt | None = None
    """Draw only from the k most probable tokens."""
    seed: Seed = 777
    """Seed of the answers."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Data type of the teacher's weights; `auto` is bfloat16 where the device is fast in it, else float32."""
    trust_remote_code: bool = False
    """Run code that comes with the teacher's weights."""
    max_model_len: PositiveInt | None = None
    """Longest prompt plus answer, in tokens; rows with longer prompts are rejected."""
    template: NonEmptyStr | None = None
    """A chat template (a Jinja file) that replaces the teacher's own, or that it needs because it has none."""
    chat_template_kwargs: TemplateVariables | None = None
    """Variables for the teacher's chat template, such as `{"enable_thinking": false}`. A row's own take precedence."""
    image: LocalImageConfig | None = None
    """How images are shown to the teacher; by default as they are."""

    def image_identity(self) -> dict[str, Any]:
        return {} if self.image is None else self.image.identity()

    @field_validator("temperature")
    @classmethod
    def _temperature(cls, value: float) -> float:
        if 0 < value < 1e-3:
            raise Unfit(f"{value} is too small to divide by", "use 0 for greedy answers, or at least 0.001")
        return value


class TransformersOptions(LocalInferenceConfig):
    """The keys of a local teacher, and those of transformers."""

    runtime_only: ClassVar[frozenset[str]] = LocalInferenceConfig.runtime_only | {
        "batch_size",
        "max_batch_tokens",
        "device_map",
    }

    batch_size: PositiveInt | None = None
    """transformers: rows generated together; by default chosen from the rows' lengths and `max_batch_tokens`."""
    max_batch_tokens: PositiveInt = 16_384
    """transformers: most prompt and answer tokens in one batch."""
    device_map: DeviceMap | None = None
    """transformers: for a teacher too large for one GPU, where it answers and where its distributions are computed.
    `auto` puts its layers one after the other on the GPUs of its process, then in the CPU's memory, then on the disk;
    the GPUs of the machine are shared equally by its copies (`workers`, by default one). Or, as in transformers, the
    number of a copy's GPU, `cpu` or `disk` for every module, such as `{"": "disk"}`. By default a copy is whole."""


class VllmOptions(LocalInferenceConfig):
    """The keys of a local teacher, and those of vLLM, named as in the paper's sample configs."""

    runtime_only: ClassVar[frozenset[str]] = LocalInferenceConfig.runtime_only | {
        "gpu_memory_utilization",
        "enforce_eager",
        "enable_chunked_prefill",
        "chunk_size",
        "tensor_parallel_size",
        "replicas",
        "startup_timeout",
    }

    chunk_size: PositiveInt = 256
    """vLLM: rows in progress at once, in each of its `replicas`. Each answer is on disk as soon as it is complete."""
    enable_chunked_prefill: bool | None = None
    """vLLM: process long prompts in several steps."""
    gpu_memory_utilization: PositiveShare = 0.9
    """vLLM: share of GPU memory to use."""
    enforce_eager: bool | None = None
    """vLLM: run without compiled graphs; by default only on CPUs, where compiling costs more than it gains."""
    tensor_parallel_size: NonNegativeInt | None = None
    """vLLM: GPUs that share one copy of the teacher; defaults to all of them, or an equal part for each replica."""
    replicas: PositiveInt | None = None
    """vLLM: start so many servers of the teacher on this machine, each on GPUs of its own, which share the rows. A
    server that dies is started again. By default one engine in this process. Answers stay valid when it changes."""
    startup_timeout: PositiveFloat = 1800.0
    """vLLM: seconds within which a server of `replicas` must have loaded the teacher."""


class AnyLocalOptions(TransformersOptions, VllmOptions):
    """Keys of every backend on this machine. The keys of other backends than the chosen one have no effect; they are
    accepted so that backends can be switched by changing `backend` alone."""

    runtime_only: ClassVar[frozenset[str]] = TransformersOptions.runtime_only | VllmOptions.runtime_only


class WorkersOptions(AnyLocalOptions):
    """Keys of the backends on this machine, and how many copies of the teacher answer there."""

    runtime_only: ClassVar[frozenset[str]] = AnyLocalOptions.runtime_only | {"workers"}

    workers: PositiveInt | Literal["auto"] | None = None
    """Answer in processes of their own, each with a copy of the teacher: this many, or with `auto` as many as the GPUs
    allow, one without a GPU. Each takes one GPU; under vLLM `tensor_parallel_size` GPUs, or an equal share of all. By
    default one copy answers in the run's own process. The answers are the same however many there are."""

    @model_validator(mode="after")
    def _workers_or_replicas(self) -> Self:
        if self.workers is not None and self.replicas is not None:
            problem = "workers and replicas are both given: copies of the teacher in processes of ours, or in servers"
            raise Unfit(problem, "remove one of them")
        return self

    @model_validator(mode="after")
    def _images_are_shown(self) -> Self:
        if self.image is not None and self.replicas is not None:
            raise Unfit("the servers of `replicas` are sent no images", "remove image, or set workers, not replicas")
        return self

    @model_validator(mode="after")
    def _devices_of_a_copy_are_known(self) -> Self:
        if self.workers == "auto" and self.device_map is not None:
            problem = 'workers is "auto", a copy for each GPU, and device_map spreads a copy over several'
            raise Unfit(problem, "set workers to the number of copies, which share the GPUs equally, or remove it")
        return self


class TransformersInferenceConfig(WorkersOptions):
    """A teacher on this machine, through transformers."""

    backend: Literal["transformers"]
    """On this machine, through transformers."""

    @model_validator(mode="after")
    def _starts_no_servers(self) -> TransformersInferenceConfig:
        if self.replicas is not None:
            problem = "replicas are vLLM servers, and backend transformers runs in this process"
            raise Unfit(problem, 'set backend to "vllm", or remove replicas')
        return self


class VllmInferenceConfig(WorkersOptions):
    """A teacher in vLLM's engine, on this machine."""

    backend: Literal["vllm"]
    """vLLM's engine on this machine."""


class RayInferenceConfig(AnyLocalOptions):
    """Copies of the teacher in the actors of a Ray cluster. A run's answers stay valid when it changes between this
    backend and those on this machine."""

    scores: ClassVar[bool] = False
    runtime_only: ClassVar[frozenset[str]] = AnyLocalOptions.runtime_only | {
        "engine",
        "address",
        "num_actors",
        "num_gpus",
        "num_cpus",
    }

    backend: Literal["ray"]
    """Actors of a Ray cluster."""
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """What runs the teacher in an actor; `auto`: vLLM if it is installed where the run starts, else transformers."""
    address: NonEmptyStr | None = None
    """A running cluster, of which this machine is a node: `auto`, or `host:port` of its head. By default a cluster of
    this machine is started, and ended with the run. On the nodes of a running cluster this package has to be installed
    with what the engine needs, and `models.teacher` has to be readable under the same name: a folder that all nodes
    share, or a model in each node's cache."""
    num_actors: PositiveInt | Literal["auto"] = "auto"
    """Actors, each with a copy of the teacher; `auto`: as many as the cluster's GPUs allow, one without a GPU."""
    num_gpus: NonNegativeFloat | None = None
    """GPUs that Ray reserves for an actor; defaults to `tensor_parallel_size`, else 1, and to 0 in a cluster without
    GPUs."""
    num_cpus: PositiveInt = 1
    """CPU cores that Ray reserves for an actor, and the threads with which it computes without a GPU."""

    @model_validator(mode="after")
    def _starts_no_servers(self) -> RayInferenceConfig:
        if self.replicas is not None:
            problem = "replicas are vLLM servers of this machine, and backend ray answers in actors"
            raise Unfit(problem, "set num_actors instead of replicas")
        return self

    @model_validator(mode="after")
    def _shows_no_images(self) -> RayInferenceConfig:
        if self.image is not None:
            raise Unfit("actors of Ray are given no images", 'remove image, or set backend to "transformers" or "vllm"')
        return self

    @model_validator(mode="after")
    def _devices_of_a_copy_are_known(self) -> RayInferenceConfig:
        if self.device_map is not None and self.num_gpus is None and self.engine != "vllm":
            problem = "device_map spreads a copy over the GPUs of its actor, and nothing says how many that has"
            raise Unfit(problem, "set num_gpus, or remove device_map")
        return self

    @field_validator("num_gpus")
    @classmethod
    def _is_what_ray_shares(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and not value.is_integer():
            raise Unfit(f"{show(value)} is a fraction above 1, which Ray does not share out", "use a whole number")
        return value

    @field_validator("address")
    @classmethod
    def _is_of_a_node(cls, value: str | None) -> str | None:
        if value is not None and "://" in value:
            raise Unfit(f"{show(value)} is the address of a Ray client", "run on a node of the cluster, with `auto`")
        return value


class AutoInferenceConfig(WorkersOptions):
    """A teacher on this machine, through vLLM if it is installed, else through transformers."""

    backend: Literal["auto"] = "auto"
    """vLLM if it is installed, else transformers."""


class WhiteBoxInferenceConfig(LocalInferenceConfig):
    """A teacher on this machine whose distributions are stored too; combined with each local backend's section."""

    runtime_only: ClassVar[frozenset[str]] = LocalInferenceConfig.runtime_only | {"top_logits_num"}

    top_logits_num: PositiveInt | None = None
    """The paper's key: keep this many most probable tokens, as `signals: {"kind": "top_k", "k": …}` does."""

    @model_validator(mode="after")
    def _sees_whole_images(self) -> Self:
        if self.image is not None:
            raise Unfit(
                "the teacher's signals are those of the images as they are", "remove image, or give smaller ones"
            )
        return self


def for_student(config: LocalInferenceConfig) -> TransformersInferenceConfig:
    """The settings by which the student answers in this process: the teacher's, but for what concerns its template."""
    of_teacher = {"backend", "template", "chat_template_kwargs", "workers", "replicas", "startup_timeout"}
    of_teacher |= {"device_map", "image"}
    known = TransformersInferenceConfig.model_fields.keys() & type(config).model_fields.keys() - of_teacher
    return TransformersInferenceConfig(backend="transformers", **{name: getattr(config, name) for name in known})
