"""Requests as clients send them. Every key is honoured, refused, or has the one value that changes nothing."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from easydistill.serving.problems import ApiProblem, refused

MOST_ANSWERS = 128
"""Of one request."""
MOST_ALTERNATIVES = 20
"""Most `top_logprobs`, as at OpenAI."""
_LEAST_TEMPERATURE = 1e-3
_UNREAD = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
"""Keys that change no answer anywhere."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
    "parallel_tool_calls": (True,),
}
"""Keys that are not supported, and their values that ask for nothing."""
_NEUTRAL_COMPLETION = {**_NEUTRAL, "echo": (False,), "best_of": (1,), "suffix": ("",)}

Temperature = Annotated[float, Field(ge=0, le=2)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Stop = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Part):
    """What a stream holds beside the answer."""

    include_usage: bool = False


class _Body(_Part):
    """What both kinds of requests have."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = _NEUTRAL

    model: str
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: int | None = None
    seed: Seed | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None
    stop: Stop | list[Stop] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None

    @model_validator(mode="after")
    def _fits(self) -> _Body:
        if self.temperature is not None and 0 < self.temperature < _LEAST_TEMPERATURE:
            raise ValueError(f"a temperature of {self.temperature} is too small to divide by: 0 is greedy")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only for streams: set stream, or leave it out")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts at which an answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatBody(_Body):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _agrees(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: set logprobs to true")
        if self.tool_choice not in (None, "auto", "none"):
            raise ValueError('tool_choice can be "auto" or "none": a model here is not made to call a tool')
        if self.tools and self.tool_choice != "none" and self.schema_wanted is not None:
            raise ValueError("response_format leaves no room for calls: send tools or response_format, not both")
        return self

    @property
    def most(self) -> int | None:
        """Longest answer in tokens."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        """How many tokens' log-probabilities are asked for beside each token's own; None for none at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        """The JSON schema that the answer is to follow."""
        form = self.response_format or {"type": "text"}
        if form == {"type": "text"}:
            return None
        if form == {"type": "json_object"}:
            return {"type": "object"}
        held = form.get("json_schema")
        if form.get("type") == "json_schema" and isinstance(held, dict) and isinstance(held.get("schema"), dict):
            schema: dict[str, Any] = held["schema"]
            return schema
        message = 'response_format is {"type": "text"}, "json_object", or "json_schema" with a json_schema.schema'
        raise refused(message, "response_format")


class CompletionBody(_Body):
    """`POST /v1/completions`."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = _NEUTRAL_COMPLETION

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    prompt_logprobs: Literal[0] | None = None
    return_token_ids: bool | None = None

    @model_validator(mode="after")
    def _agrees(self) -> CompletionBody:
        if not self.prompt or any(not part for part in self.prompts):
            raise ValueError("a prompt is empty")
        if len(self.prompts) * (self.n or 1) > MOST_ANSWERS:
            raise ValueError(f"a request has at most {MOST_ANSWERS} answers: send fewer prompts, or a smaller n")
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("a stream has no prompt_logprobs: leave out stream")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        single = bool(prompt) and isinstance(prompt[0], int)
        return [prompt] if single else list(prompt)  # type: ignore[list-item,arg-type]


Body = TypeVar("Body", ChatBody, CompletionBody)


def read_body(kind: type[Body], value: Any) -> Body:
    """A request.

    Raises:
        ApiProblem: it is none, or asks for something that is not supported.
    """
    if not isinstance(value, dict):
        raise refused("the body must be a JSON object")
    given = {key: item for key, item in value.items() if key not in _UNREAD}
    for key, neutral in kind.neutral.items():
        if key in given and (item := given.pop(key)) is not None and item not in neutral:
            raise _unsupported(key)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _problem(error) from None


def _problem(error: ValidationError) -> ApiProblem:
    # Of the members of a union, the one that came furthest is meant; they stand in the place too, in pydantic's words.
    first = max(error.errors(include_url=False, include_input=False), key=lambda one: len(one["loc"]))
    place = ".".join(str(part) for part in first["loc"][:1]) or None
    if first["type"] == "extra_forbidden":
        return _unsupported(".".join(map(str, first["loc"])))
    return refused(first["msg"].removeprefix("Value error, ") if place is None else f"{place}: {first['msg']}", place)


def _unsupported(key: str) -> ApiProblem:
    return refused(f"{key} is not supported by this server: leave it out", key, "unsupported_parameter")
