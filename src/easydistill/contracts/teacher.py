"""What teachers of every backend take and return.

A teacher is given `GenerationRequest`s and hands each outcome to `record` as soon as it has it: a `Completion`, exactly
as received, or a `Failure`. The caller decides what to keep; stages journal every outcome before parsing it.
"""

from __future__ import annotations

import hashlib
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from easydistill.config.extensions import names_itself
from easydistill.config.inference import ApiInferenceConfig, InferenceConfig, LocalInferenceConfig
from easydistill.data.images.normalise import NORMALISER
from easydistill.data.messages import Chat, HasChat, Message, Tool, identity_of, images_of
from easydistill.data.records import content_hash
from easydistill.engine.interrupt import StopSignal
from easydistill.errors import DataError
from easydistill.registry import Contract

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer
    from easydistill.engine.stage import StageContext
    from easydistill.errors import ConfigIssue

TEMPLATE_REFUSED = "template_refused"
"""Rejection reason: the model's chat template does not accept the row, such as a system message where there is no such
role."""
MALFORMED_CALL = "malformed_call"
"""Rejection reason: the answer calls a tool in a way that cannot be read. Also the key of `Completion.extra` under
which a teacher that reads calls from text says what is wrong."""
SEVERAL_SERVERS = "several servers"


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt for a teacher."""

    key: str
    """Hash of everything that can change the answer, and nothing else (see `request_key`)."""
    messages: tuple[Message, ...]
    schema: dict[str, Any] | None = field(default=None, kw_only=True)
    """JSON schema for the answer. Local models are constrained to it; an API is only sent it, so check the answer."""
    index: int = field(default=0, kw_only=True)
    """Number of the sample, where a prompt is sampled several times."""
    temperature: float | None = field(default=None, kw_only=True)
    """Sampling temperature of this answer; None uses the teacher's."""
    tools: tuple[Tool, ...] = field(default=(), kw_only=True)
    """The tools that the answer may call."""
    template_kwargs: dict[str, Any] = field(default_factory=dict, kw_only=True)
    """Variables of the chat template that the prompt brings."""

    @classmethod
    def of(cls, key: str, chat: HasChat) -> GenerationRequest:
        """The request for the next message of a chat."""
        return cls(key, chat.messages, tools=chat.tools, template_kwargs=chat.template_kwargs)


def request_key(
    teacher: dict[str, Any],
    sampling: dict[str, Any],
    chat: HasChat | Sequence[Message],
    index: int = 0,
    schema: dict[str, Any] | None = None,
    image: Mapping[str, Any] | None = None,
) -> str:
    """The key of a request.

    Args:
        teacher: what identifies the model: endpoint and name, or the files' hash.
        sampling: everything that shapes the answer: temperature, seed, length.
        chat: the whole prompt as sent, with its tools and template variables.
        index: number of the sample, where a prompt is sampled several times.
        schema: JSON schema of the answer, if the request has one.
        image: how images are sent. It is part of the key of a chat that has some, with the version of what sees to it
            that everybody looks at the same copy.
    """
    structure: list[Any] = [] if schema is None else [schema]
    whole = Chat.of(chat)
    if images_of(*whole.messages):
        structure.append({"images": {"normaliser": NORMALISER, **(image or {})}})
    return content_hash([teacher, sampling, identity_of(whole.messages, whole), index, *structure])[:32]


def bare_url(url: str) -> str:
    """A URL without user name and password."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def endpoint_name(urls: Sequence[str]) -> str:
    """The name of a teacher's endpoint in request keys and fingerprints.

    One URL stands for itself, without user and password. Several URLs share one name, so that the teacher is identified
    by its model alone: servers can be added, removed and reordered without asking for anything again.
    """
    return bare_url(urls[0]) if len(urls) == 1 else SEVERAL_SERVERS


def row_seed(seed: int, key: str) -> int:
    """The seed of one row's answer, from the run's seed and the request's key; 0 … 2⁶³−1."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big") >> 1


def sample_seed(seed: int, index: int) -> int:
    """The seed that a server is sent for sample `index` of a prompt: `seed` itself for the first; −2⁶³ … 2⁶³−1."""
    return (seed + index + 2**63) % 2**64 - 2**63


@dataclass(frozen=True)
class Completion:
    """A teacher's answer as received; nothing in it has been checked yet."""

    key: str
    text: str | None
    """None where the server sent `content: null`."""
    reasoning: str | None = None
    """Its thoughts, if they came apart from the text."""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str | None = None
    attempts: int = 1
    seconds: float = 0.0
    cached_prompt_tokens: int | None = None
    """Prompt tokens read from the server's cache, if it reports them."""
    reasoning_tokens: int | None = None
    """Tokens of the answer spent on reasoning, if the server reports them."""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    """Calls of tools as OpenAI spells them: `{"id": …, "function": {"name": …, "arguments": JSON text}}`."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Other parts of the response worth keeping: its id, a refusal, log-probabilities."""

    def as_record(self) -> dict[str, Any]:
        return {"kind": "completion", **asdict(self)}


@dataclass(frozen=True)
class Failure:
    """A request without an answer."""

    key: str
    reason: str
    """A short category for counts: `rate_limit`, `timeout`, `http_400` …"""
    detail: str
    attempts: int
    passing: bool
    """Whether the fault may be temporary; a resumed run repeats only such requests."""
    raw: str | None = None

    def as_record(self) -> dict[str, Any]:
        return {"kind": "failure", **asdict(self)}


Outcome = Completion | Failure
RecordOutcomes = Callable[[Sequence[Outcome]], None]
"""Called with outcomes that must be stored together: one from an API, a whole batch from a local model."""


def outcome_from_record(record: dict[str, Any]) -> Outcome:
    """The inverse of `as_record`."""
    values = {name: value for name, value in record.items() if name != "kind"}
    return Completion(**values) if record["kind"] == "completion" else Failure(**values)


class Teacher(Protocol):
    """Answers requests."""

    def identity(self) -> dict[str, Any]:
        """Identifies the model in request keys. May ask the server; must be stable."""

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        done: Callable[[str], bool],
        record: RecordOutcomes,
        stop: StopSignal,
    ) -> None:
        """Answer every request whose key is not `done`, handing outcomes to `record`.

        `requests` includes the finished ones, so that a local teacher forms the same batches, and therefore gives the
        same answers, in a resumed run as in one that was never interrupted.

        Returns early, without error, once `stop` is requested and the requests in flight are recorded.

        Raises:
            TeacherError: no request can succeed (wrong key, unknown model, no quota). Recorded outcomes remain valid.
        """

    def close(self) -> None:
        """Free the model or the connections."""


@dataclass(frozen=True)
class TeacherPlan:
    """How a backend creates the teacher of an `inference` section, and what is known before it does."""

    make: Callable[[StageContext], Teacher]
    """Creates the teacher for one stage; files of its own go into the stage's directory."""
    identity: Callable[[], dict[str, Any]]
    """Identifies the teacher in the stage's fingerprint, without contacting it."""
    preflight: Callable[[], list[ConfigIssue]]
    """Problems that can be found before anything is loaded or asked: a missing library, a missing model."""
    memory_bytes: Callable[[], int | None] = lambda: None
    """Memory that its weights need on this machine; None if it runs elsewhere, or the size is unknown."""
    shows_date: Callable[[], bool] = lambda: False
    """Whether its prompts are rendered here with a template that writes the date: the fingerprint then has the date."""
    notes: Callable[[], list[str]] = list
    """What users should know of how it runs, a line each."""
    sees_images: Callable[[], bool] = lambda: False
    """Whether it is given the images of requests. Rows with images are not sent to a teacher that is not."""


def prompt_or_failure(chat: ChatRenderer, request: GenerationRequest, context: int | None) -> list[int] | Failure:
    """A request's prompt tokens, or the failure if they do not fit a model with `context` tokens."""
    try:
        prompt = chat.prompt_ids(request)
    except DataError as error:
        return Failure(request.key, TEMPLATE_REFUSED, str(error), 0, passing=False)
    if context is not None and len(prompt) >= context:
        detail = f"the prompt has {len(prompt)} tokens, the model takes {context}"
        return Failure(request.key, "prompt_too_long", detail, 0, passing=False)
    return prompt


class TeacherModule(Protocol):
    """A module registered as a teacher backend. Importing it loads no heavy library; its plan's functions may."""

    Config: type[InferenceConfig]
    """Its `inference` section, with a field `backend` of the type Literal["<its name>"]."""

    def plan(self, config: InferenceConfig, model: str | None, template: str | None) -> TeacherPlan:
        """How the teacher of a section is created.

        Args:
            model: the reference in the config's `models` section; None if the class says `needs_model = False`.
            template: a chat-template file for a model without a template of its own, or None.
        """


def _check(name: str, module: ModuleType) -> list[str]:
    config = module.Config
    problems = names_itself(name, config, "backend")
    if config.scores and not issubclass(config, LocalInferenceConfig | ApiInferenceConfig):
        problems.append("`Config.scores` is set, so `Config` must be a LocalInferenceConfig")
    return problems


TEACHER = Contract(TeacherModule, check=_check)
