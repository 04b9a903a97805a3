"""Log-probabilities of given tokens from a vLLM server: `prompt_logprobs` of `POST {base_url}/completions`.

Input: token ids, and the first of them to score. Output: log p_T(token t | tokens before t) for it and all later ones,
in nats, at temperature 1. The prompt is sent as ids, so that the server scores exactly the tokens that the student
wrote; the server's vocabulary is compared with the student's at the beginning.

Concurrency, retries and error messages are those of the API teacher.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import Failure, GenerationRequest, Outcome
from easydistill.data.numbers import as_float, usable_logprob
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.secrets import Redactor
from easydistill.errors import TeacherError
from easydistill.teachers.openai.completions import CompletionsClient
from easydistill.teachers.openai.retry import Fault, Verdict, from_error_object
from easydistill.teachers.sizes import Size

NO_LOGPROBS = "no_prompt_logprobs"
_TOO_LONG = ("max_tokens must be at least 1", "context length", "maximum model length")
MAX_STRANGE = 0.02
"""Share of plain-text tokens that the server may decode differently before its tokenizer counts as another one."""


@dataclass(frozen=True)
class _ScoreRequest(GenerationRequest):
    """Token ids instead of messages."""

    ids: tuple[int, ...] = ()


class ServerScores:
    """Scores token sequences with the model behind a vLLM server.

    Args:
        inference: the server, and the timeouts and limits for asking it.
        decode: decodes a token id with the student's tokenizer.
    """

    def __init__(self, inference: ApiInferenceConfig, redactor: Redactor, decode: Callable[[int], str]) -> None:
        # Sampling settings shape answers, not scores; streams carry no prompt log-probabilities.
        self._client = _Client(inference.model_copy(update={"stream": False}), redactor)
        self._decode = decode
        self._compared = False

    def score(
        self, sequences: Sequence[tuple[list[int], int]], stop: StopSignal, images: Sequence[tuple[str, ...]] = ()
    ) -> list[list[float]]:
        """For each (token ids, start), start ≥ 1: the log-probabilities of the tokens from `start` on, NaN for none.

        Raises:
            TeacherError: the server refuses, is unreachable for longer than the retries last, is no vLLM server, or
                has another tokenizer than the student.
            Interrupted: the user asked to stop before all were scored.
        """
        # The server would score the text without a word, and not have seen them.
        assert not any(images), "the job refuses rows with images"
        requests = [_ScoreRequest(str(n), (), tuple(ids)) for n, (ids, _) in enumerate(sequences)]
        found: dict[str, list[dict[str, Any]]] = {}

        def record(outcomes: Sequence[Outcome]) -> None:
            for outcome in outcomes:
                if isinstance(outcome, Failure):
                    raise self._client.given_up(outcome)
                found[outcome.key] = outcome.extra["tokens"]

        self._client.generate(requests, lambda key: False, record, stop)
        if len(found) < len(requests):
            stop.raise_if_requested()
        self._compare([(request.ids, found[request.key]) for request in requests])
        return [
            [float(token["logprob"]) for token in found[request.key][start - 1 :]]
            for request, (_, start) in zip(requests, sequences, strict=True)
        ]

    def _compare(self, scored: Sequence[tuple[Sequence[int], list[dict[str, Any]]]]) -> None:
        """Check that the server decodes tokens as the student does, until enough of them have been compared."""
        if self._compared:
            return
        read = {
            token: (self._decode(token), entry["decoded_token"])
            for ids, tokens in scored
            for token, entry in zip(ids[1:], tokens, strict=True)
            if isinstance(entry.get("decoded_token"), str)
        }
        # Servers decode partial characters and special tokens in different ways, but not plain text.
        plain = {token: pair for token, pair in read.items() if pair[0].strip().isascii() and pair[0].strip().isalnum()}
        strange = {token: (ours, theirs) for token, (ours, theirs) in plain.items() if ours.strip() != theirs.strip()}
        if len(strange) > MAX_STRANGE * len(plain):
            token, (ours, theirs) = next(iter(strange.items()))
            raise TeacherError(
                f"the server's tokenizer is not the student's: token {token} is {ours!r} here and {theirs!r} there "
                f"({len(strange)} of {len(plain)} differ)\n"
                "    → take a teacher with the student's vocabulary; for others there is black_box_kd_api"
            )
        self._compared = len(plain) * MAX_STRANGE >= 1


class _Client(CompletionsClient):
    """The API teacher, asking for scores instead of answers."""

    def _body(self, model: str, request: GenerationRequest) -> dict[str, Any]:
        assert isinstance(request, _ScoreRequest)
        # vLLM generates at least one token. 0 log-probabilities means only the token's own, without alternatives.
        return {"model": model, "prompt": list(request.ids), "max_tokens": 1, "prompt_logprobs": 0}

    def _size(self, request: GenerationRequest) -> Size:
        assert isinstance(request, _ScoreRequest)
        return Size(len(request.ids), 1, len(request.ids), 1)

    async def _attempt(self, client: Any, body: dict[str, Any]) -> dict[str, Any]:
        content = await self._content(client, body, "scores")
        return {"text": None, "extra": {"tokens": target_logprobs(content, body["prompt"])}}

    def given_up(self, failure: Failure) -> TeacherError:
        """The error for a request without scores; training needs all of them."""
        detail = failure.detail.lower()
        if failure.reason == NO_LOGPROBS:
            hint = "on_policy.objective sampled_reverse_kl needs a vLLM server (it is asked for prompt_logprobs)"
        elif any(words in detail for words in _TOO_LONG):
            hint = "start the server with a larger --max-model-len than training.max_length, or lower the latter"
        elif "out of vocabulary" in detail:
            hint = "the student's vocabulary is not the teacher's; use black_box_kd_api"
        else:
            hint = "check the server; the same command then goes on from the last checkpoint"
        times = f" after {failure.attempts} attempts" if failure.attempts > 1 else ""
        return TeacherError(f"{self._where} gives no scores{times}: {failure.reason}: {failure.detail}\n    → {hint}")


def target_logprobs(content: bytes, ids: Sequence[int]) -> list[dict[str, Any]]:
    """A response's entry for each of tokens 1, 2 … of `ids`: `{"logprob": …, "decoded_token": …}`.

    Raises:
        Fault: the body is broken (to be retried), or has no log-probabilities (not to be retried).
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise Fault("garbage", "the body is not JSON", Verdict.RETRY) from None
    if isinstance(body, dict) and body.get("error"):
        raise from_error_object(body["error"], time.time())
    try:
        entries = body["choices"][0].get("prompt_logprobs")
    except (LookupError, TypeError, AttributeError):
        raise Fault("garbage", "the body holds no choices", Verdict.RETRY) from None
    if entries is None:
        raise Fault(NO_LOGPROBS, "the answer holds no prompt_logprobs", Verdict.REJECT)
    if not isinstance(entries, list) or len(entries) != len(ids):
        raise Fault(NO_LOGPROBS, f"prompt_logprobs is not a list of {len(ids)} tokens", Verdict.REJECT)
    tokens: list[dict[str, Any]] = []
    for entry, token in zip(entries[1:], ids[1:], strict=True):
        found = entry.get(str(token)) if isinstance(entry, dict) else None
        if not isinstance(found, dict) or not _is_logprob(found.get("logprob", "")):
            raise Fault(NO_LOGPROBS, f"prompt_logprobs has no entry for token {token}", Verdict.REJECT)
        tokens.append({**found, "logprob": usable_logprob(found["logprob"])})
    return tokens


def _is_logprob(value: Any) -> bool:
    """Whether a value stands where a log-probability does; it may be null, not finite, or a placeholder."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        return False
    number = as_float(value)
    return number is None or number <= 1e-3
