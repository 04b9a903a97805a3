"""What every teacher takes and gives, whatever answers behind it.

A teacher is asked with `GenerationRequest`s and hands each outcome to `record` as soon as it has it: a `Completion`,
exactly as received, or a `Failure`. Whoever calls decides what to keep; the label stage journals every outcome
before anything looks inside it.
"""

from __future__ import annotations

import hashlib
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from easydistill.data.records import Message, content_hash
from easydistill.engine.interrupt import StopSignal
from easydistill.errors import DataError

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer
from easydistill.engine.stage import StageContext
from easydistill.errors import ConfigIssue

TEMPLATE_REFUSED = "template_refused"
"""Reason of a row whose chat the model's template does not take: a system message, say, where there is no such role."""
SEVERAL_SERVERS = "several servers"


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt for a teacher."""

    key: str
    """Hash of everything that can change the answer, and nothing else (see `request_key`)."""
    messages: tuple[Message, ...]
    schema: dict[str, Any] | None = field(default=None, kw_only=True)
    """JSON schema that the answer should follow. Local models are held to it, an API is told; it must be checked."""
    index: int = field(default=0, kw_only=True)
    """Number of the sample, where one prompt is sampled several times."""
    temperature: float | None = field(default=None, kw_only=True)
    """Sampling temperature of this one answer; None takes the teacher's."""


def request_key(
    teacher: dict[str, Any],
    sampling: dict[str, Any],
    messages: Sequence[Message],
    index: int = 0,
    schema: dict[str, Any] | None = None,
) -> str:
    """The key of a request.

    Args:
        teacher: what identifies the model: endpoint and name, or the files' hash.
        sampling: everything that shapes the answer: temperature, seed, length.
        messages: the whole prompt as sent, images included.
        index: number of the sample, where one prompt is sampled several times.
        schema: of the answer, where the request has one.
    """
    structure = [] if schema is None else [schema]
    return content_hash([teacher, sampling, list(messages), index, *structure])[:32]


def bare_url(url: str) -> str:
    """A URL without user name and password."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def endpoint_name(urls: Sequence[str]) -> str:
    """What request keys and fingerprints say of where a teacher is.

    One URL is itself, without password. Several stand for one teacher that is known by its model alone: servers may be
    added, removed and reordered, and nothing is asked twice.
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
    """A teacher's answer as received. Nothing in it has been judged yet."""

    key: str
    text: str | None
    """None where the server sent `content: null`."""
    reasoning: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str | None = None
    attempts: int = 1
    seconds: float = 0.0
    cached_prompt_tokens: int | None = None
    """Prompt tokens that the server had read before, where it tells."""
    reasoning_tokens: int | None = None
    """Tokens of the answer that are thoughts, where the server tells."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What else the server sent that is worth keeping: response id, refusal, log-probabilities."""

    def as_record(self) -> dict[str, Any]:
        return {"kind": "completion", **asdict(self)}


@dataclass(frozen=True)
class Failure:
    """A request that brought no answer."""

    key: str
    reason: str
    """A short word for counting: `rate_limit`, `timeout`, `http_400` …"""
    detail: str
    attempts: int
    passing: bool
    """Whether asking again later might work; a resumed run asks again only where it might."""
    raw: str | None = None

    def as_record(self) -> dict[str, Any]:
        return {"kind": "failure", **asdict(self)}


Outcome = Completion | Failure
RecordOutcomes = Callable[[Sequence[Outcome]], None]
"""Takes outcomes that must be kept together: one for an API, a whole batch for a local model."""


def outcome_from_record(record: dict[str, Any]) -> Outcome:
    """The inverse of `as_record`."""
    values = {name: value for name, value in record.items() if name != "kind"}
    return Completion(**values) if record["kind"] == "completion" else Failure(**values)


class Teacher(Protocol):
    """Answers requests."""

    def identity(self) -> dict[str, Any]:
        """What tells this model from any other, for request keys. May ask the server; must be stable."""

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        done: Callable[[str], bool],
        record: RecordOutcomes,
        stop: StopSignal,
    ) -> None:
        """Answer every request whose key is not `done`, handing outcomes to `record`.

        All requests are given, finished ones too, so that a local teacher forms the same batches, and therefore
        the same answers, in a resumed run as in one that was never interrupted.

        Returns early, without error, once `stop` is requested and what was under way is recorded.

        Raises:
            TeacherError: no request can succeed (wrong key, unknown model, no quota). Outcomes recorded so far stand.
        """

    def close(self) -> None:
        """Free the model or the connections."""


def prompt_or_failure(chat: ChatRenderer, request: GenerationRequest, context: int | None) -> list[int] | Failure:
    """A request's prompt tokens, or why a model with room for `context` tokens cannot be asked."""
    try:
        prompt = chat.prompt_ids(request.messages)
    except DataError as error:
        return Failure(request.key, TEMPLATE_REFUSED, str(error), 0, passing=False)
    if context is not None and len(prompt) >= context:
        detail = f"the prompt has {len(prompt)} tokens, the model takes {context}"
        return Failure(request.key, "prompt_too_long", detail, 0, passing=False)
    return prompt


@dataclass(frozen=True)
class TeacherPlan:
    """How the label stage gets its teacher."""

    make: Callable[[StageContext], Teacher]
    identity: Callable[[], dict[str, Any]]
    """What names the teacher in the fingerprint, without asking it anything."""
    preflight: Callable[[], list[ConfigIssue]]
    memory_bytes: Callable[[], int | None] = lambda: None
    """What its weights take on this machine, where it runs here."""
