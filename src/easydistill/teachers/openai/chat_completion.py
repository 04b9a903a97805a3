"""OpenAI's chat-completion protocol: builds request bodies and parses responses, whole or streamed.

Parsing is strict: whatever is not an answer raises a `Fault`.
"""

from __future__ import annotations

import json
import time
from typing import Any

from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import MALFORMED_CALL, GenerationRequest, sample_seed
from easydistill.data.messages import openai_message
from easydistill.teachers.openai.features import json_schema_format
from easydistill.teachers.openai.parts import CallParts, ThoughtParts, is_answer
from easydistill.teachers.openai.retry import Fault, Verdict, from_error_object

RAW_LIMIT = 4000


def request_body(config: ApiInferenceConfig, model: str, request: GenerationRequest) -> dict[str, Any]:
    """The body of a request. Digests stand in it for images: `ImageStore.filled` puts data URLs in their place."""
    messages = [_with_image_urls(openai_message(message), config.images_sent.detail) for message in request.messages]
    body: dict[str, Any] = {"model": model, "messages": messages}
    if request.tools:
        body["tools"] = list(request.tools)
    if variables := (config.chat_template_kwargs or {}) | request.template_kwargs:
        body["chat_template_kwargs"] = variables
    body["max_tokens"] = config.max_new_tokens
    temperature = config.temperature if request.temperature is None else request.temperature
    if temperature is not None:
        body["temperature"] = temperature
    if config.top_p is not None:
        body["top_p"] = config.top_p
    if config.seed is not None:
        # With one seed, servers that honour it would give the same answer for all samples of a prompt.
        body["seed"] = sample_seed(config.seed, request.index)
    if config.stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    if request.schema is not None:
        body["response_format"] = json_schema_format(request.schema)
    return body


def _with_image_urls(message: dict[str, Any], detail: str | None) -> dict[str, Any]:
    if isinstance(message["content"], str):
        return message
    asked = {} if detail is None else {"detail": detail}
    parts = [
        {"type": "image_url", "image_url": {"url": part["image"], **asked}} if part["type"] == "image" else part
        for part in message["content"]
    ]
    return {**message, "content": parts}


def garbage(problem: str, raw: str) -> Fault:
    """The fault for a body that is not an answer."""
    return Fault("garbage", problem, Verdict.RETRY, raw=raw[:RAW_LIMIT])


def parse_object(content: bytes | str, what: str, raw: str) -> dict[str, Any]:
    """The JSON object in `content`, which faults call `what`.

    Raises:
        Fault: it is not one, or reports an error.
    """
    try:
        value = json.loads(content)
    except ValueError:
        raise garbage(f"{what} is not JSON", raw) from None
    if not isinstance(value, dict):
        raise garbage(f"{what} is not an object", raw)
    if value.get("error"):
        raise from_error_object(value["error"], time.time())
    return value


def parse_body(content: bytes) -> dict[str, Any]:
    """The answer in a response's body, as the arguments of `Completion`.

    Raises:
        Fault: the body is no answer.
    """
    text = content.decode("utf-8", "replace")
    try:
        body = json.loads(content)
    except ValueError:
        raise garbage("the body is not JSON", text) from None
    if isinstance(body, dict) and body.get("error"):
        raise from_error_object(body["error"], time.time())
    answer = Answer()
    if not isinstance(body, dict) or not isinstance(body.get("choices"), list) or not body["choices"]:
        raise garbage("the body has no choices", text)
    choice = body["choices"][0]
    if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
        raise garbage("the first choice has no message", text)
    if not is_answer(choice["message"]):
        raise garbage("the message has no content", text)
    answer.head(body)
    answer.add_message(choice["message"], text)
    answer.finish_reason = _text_or_none(choice.get("finish_reason"))
    answer.logprobs = choice.get("logprobs")
    answer.add_problem(choice)
    return answer.arguments()


def read_body(content: bytes) -> dict[str, Any]:
    """As `parse_body`, but faults carry the whole body, so that it can be redacted before it is cut."""
    try:
        return parse_body(content)
    except (Fault, RecursionError) as error:
        fault = error if isinstance(error, Fault) else garbage("the body is nested too deeply", "")
        fault.raw = content.decode("utf-8", "replace")
        raise fault from None


class StreamParser:
    """Reads the lines of a server-sent-events stream."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.done = False
        self.raw = ""

    def feed(self, line: str) -> None:
        """Take one line.

        Raises:
            Fault: it reports an error, or is not of the protocol.
        """
        if not line.strip() or line.startswith((":", "event:", "id:", "retry:")):
            return
        if len(self.raw) < RAW_LIMIT:
            self.raw += line + "\n"
        if not line.startswith("data:"):
            raise garbage("a line of the stream is not an event", self.raw)
        data = line[5:].strip()
        if data == "[DONE]":
            self.done = True
            return
        chunk = parse_object(data, "an event of the stream", self.raw)
        self.answer.head(chunk)
        choices = chunk.get("choices") or []
        if choices and isinstance(choices[0], dict):
            delta = choices[0].get("delta")
            if isinstance(delta, dict):
                self.answer.add_delta(delta, self.raw)
            self.answer.add_problem(choices[0])
            self.answer.finish_reason = _text_or_none(choices[0].get("finish_reason")) or self.answer.finish_reason

    def result(self) -> dict[str, Any]:
        """The whole answer, as the arguments of `Completion`.

        Raises:
            Fault: the stream ended before the answer did.
        """
        if not self.done and self.answer.finish_reason is None:
            problem = "the stream ended in the middle of the answer" if self.raw else "the stream was empty"
            raise Fault("stream_dropped", problem, Verdict.RETRY, raw=self.raw[:RAW_LIMIT])
        return self.answer.arguments()


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


class Answer:
    """The parts of an answer received so far."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.logprobs: Any = None
        self._text: list[str] = []
        self._thoughts = ThoughtParts()
        self._calls = CallParts()
        self._refusal: list[str] = []
        self._problem: str | None = None
        self._seen_text = False
        self._head: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}

    def head(self, body: dict[str, Any]) -> None:
        """Keep ids and usage, which are outside the choices."""
        for name in ("id", "model", "system_fingerprint"):
            if isinstance(body.get(name), str):
                self._head[name] = body[name]
        if isinstance(body.get("usage"), dict):
            self._usage = body["usage"]

    def add_problem(self, choice: dict[str, Any]) -> None:
        """Keep why a call in the text cannot be read: `easydistill serve` says so, other servers leave it as text."""
        self._problem = _text_or_none(choice.get(MALFORMED_CALL)) or self._problem

    def add_message(self, message: dict[str, Any], raw: str) -> None:
        """Add a whole message."""
        self._add(message, raw)
        self._calls.add_message(message)

    def add_delta(self, delta: dict[str, Any], raw: str) -> None:
        """Add the delta of a message."""
        self._add(delta, raw)
        self._calls.add_delta(delta)

    def _add(self, message: dict[str, Any], raw: str) -> None:
        content = message.get("content")
        if isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
            content = "".join(part for part in parts if isinstance(part, str))
        if isinstance(content, str):
            self._seen_text = True
            self._text.append(content)
        elif content is not None:
            raise garbage("the content is not text", raw)
        self._thoughts.add(message)
        if isinstance(message.get("refusal"), str):
            self._refusal.append(message["refusal"])

    def arguments(self) -> dict[str, Any]:
        extra = {name: value for name, value in self._head.items() if name != "model"}
        if self._refusal:
            extra["refusal"] = "".join(self._refusal)
        if self._problem is not None:
            extra[MALFORMED_CALL] = self._problem
        if self.logprobs is not None:
            extra["logprobs"] = self.logprobs
        return {
            "text": "".join(self._text) if self._seen_text else None,
            "reasoning": self._thoughts.text() or None,
            "tool_calls": self._calls.calls(),
            "finish_reason": self.finish_reason,
            "prompt_tokens": _count(self._usage.get("prompt_tokens")) or 0,
            "completion_tokens": _count(self._usage.get("completion_tokens")) or 0,
            "cached_prompt_tokens": _cached_tokens(self._usage),
            "reasoning_tokens": _detail(self._usage, "completion_tokens_details", "reasoning_tokens"),
            "model": self._head.get("model"),
            "extra": extra,
        }


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _detail(usage: dict[str, Any], group: str, name: str) -> int | None:
    details = usage.get(group)
    return _count(details.get(name)) if isinstance(details, dict) else None


def _cached_tokens(usage: dict[str, Any]) -> int | None:
    """Prompt tokens read from a cache, under OpenAI's name or DeepSeek's."""
    cached = _detail(usage, "prompt_tokens_details", "cached_tokens")
    return cached if cached is not None else _count(usage.get("prompt_cache_hit_tokens"))
