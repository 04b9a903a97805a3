"""What clients are sent, as OpenAI spells it: whole answers, chunks of streams, log-probabilities, usage."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from easydistill.serving.rows import Ended, Scored

Decode = Callable[[Sequence[int]], str]
DONE = b"data: [DONE]\n\n"
BROKEN = "\ufffd"


@dataclass(frozen=True)
class Head:
    """What all parts of one reply begin with."""

    kind: str
    """`chat.completion` or `text_completion`."""
    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def is_chat(self) -> bool:
        return self.kind == "chat.completion"

    def body(self, choices: Sequence[Mapping[str, Any]], *, chunk: bool = False, **more: Any) -> dict[str, Any]:
        """A whole reply, or one chunk of a stream."""
        kind = f"{self.kind}.chunk" if chunk and self.is_chat else self.kind
        name = f"chatcmpl-{self.id}" if self.is_chat else f"cmpl-{self.id}"
        made = {"id": name, "object": kind, "created": self.created, "model": self.model, "choices": list(choices)}
        return {**made, **more}


def event(value: Mapping[str, Any]) -> bytes:
    """One event of a stream."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def usage(prompts: Sequence[int], written: Sequence[Ended]) -> dict[str, int]:
    """The tokens of prompts, and of all their answers."""
    prompt, completion = sum(prompts), sum(answer.tokens for answer in written)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def chat_logprobs(scored: Sequence[Scored], decode: Decode) -> dict[str, Any]:
    """The log-probabilities of an answer's tokens, or of a chunk's."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = decode([token])
        # A part of a character is no text.
        own = None if BROKEN in text else list(text.encode("utf-8", "replace"))
        return {"token": text, "logprob": logprob, "bytes": own}

    content = [
        {**entry(one.token, one.logprob), "top_logprobs": [entry(*other) for other in one.alternatives]}
        for one in scored
    ]
    return {"content": content, "refusal": None}


def text_logprobs(scored: Sequence[Scored], decode: Decode, start: int = 0) -> dict[str, Any]:
    """The same as `/v1/completions` spells it.

    Args:
        start: characters of the answer before these tokens.
    """
    tokens = [decode([one.token]) for one in scored]
    offsets = [start]
    for token in tokens[:-1]:
        offsets.append(offsets[-1] + len(token))
    return {
        "tokens": tokens,
        "token_logprobs": [one.logprob for one in scored],
        "top_logprobs": [{decode([token]): value for token, value in one.alternatives} for one in scored],
        "text_offset": offsets[: len(tokens)],
    }


def prompt_logprobs(ids: Sequence[int], logprobs: Sequence[float], decode: Decode) -> list[dict[str, Any] | None]:
    """The log-probabilities of a prompt's tokens as vLLM spells them; the first token has none."""
    return [
        None,
        *(
            {str(token): {"logprob": logprob, "rank": None, "decoded_token": decode([token])}}
            for token, logprob in zip(ids[1:], logprobs, strict=True)
        ),
    ]
