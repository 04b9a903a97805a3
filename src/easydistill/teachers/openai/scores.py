"""Log-probabilities of given tokens from a vLLM server: `prompt_logprobs` of `POST {base_url}/completions`.

Input: token ids, and the first of them to score. Output: log p_T(token t | tokens before t) for it and all later ones,
in nats, at temperature 1. The prompt is sent as ids, so that the server scores exactly the tokens that the student
wrote; the server's vocabulary is compared with the student's at the beginning.

`/completions` takes no images, and answers as if there were none. Tokens with images go to `POST
/inference/v1/generate`, see `image_scores.py`.

Concurrency, retries and error messages are those of the API teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import Failure, GenerationRequest, Outcome
from easydistill.data.images import ImageStore
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.secrets import Redactor
from easydistill.errors import TeacherError
from easydistill.teachers.listed import Listed
from easydistill.teachers.openai.completions import CompletionsClient
from easydistill.teachers.openai.image_scores import HINTS, ImagePrompt, address_of, check_prompt, told
from easydistill.teachers.openai.prompt_logprobs import NO_LOGPROBS, OTHERS, target_logprobs
from easydistill.teachers.sizes import Size

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

_TOO_LONG = ("max_tokens must be at least 1", "context length", "maximum model length")
MAX_STRANGE = 0.02
"""Share of plain-text tokens that the server may decode differently before its tokenizer counts as another one."""


@dataclass(frozen=True)
class _ScoreRequest(GenerationRequest):
    """Token ids instead of messages."""

    ids: tuple[int, ...] = ()
    shown: ImagePrompt | None = None
    """The same with its images, if there are any."""
    top: int = 0
    """How many of the most probable tokens are wanted in the place of each."""


class ServerScores:
    """Scores token sequences with the model behind a vLLM server.

    Args:
        inference: the server, and the timeouts and limits for asking it.
        decode: decodes a token id with the student's tokenizer.
        vision: what the student sees of images, and as which tokens.
        images: holds them.
    """

    def __init__(
        self,
        inference: ApiInferenceConfig,
        redactor: Redactor,
        decode: Callable[[int], str],
        vision: Vision | None = None,
        images: ImageStore | None = None,
    ) -> None:
        # Sampling settings shape answers, not scores; streams carry no prompt log-probabilities.
        self._client = _Client(inference.model_copy(update={"stream": False}), redactor, images=images)
        self._decode = decode
        self._vision = vision
        self._compared = False

    def score(
        self, sequences: Sequence[tuple[list[int], int]], stop: StopSignal, images: Sequence[tuple[str, ...]] = ()
    ) -> list[list[float]]:
        """For each (token ids, start), start ≥ 1: the log-probabilities of the tokens from `start` on, NaN for none.

        Args:
            images: the digests of each sequence's images; empty if none has any. The ids are those that the student
                reads, every image as many tokens.

        Raises:
            TeacherError: the server refuses, is unreachable for longer than the retries last, is no vLLM server, has
                another tokenizer than the student, or reads images as other tokens.
            DataError: the ids of a sequence were made for other images.
            Interrupted: the user asked to stop before all were scored.
        """
        return [[float(token["logprob"]) for token in tokens] for tokens in self._asked(sequences, 0, stop, images)]

    def lists(
        self,
        sequences: Sequence[tuple[list[int], int]],
        k: int,
        stop: StopSignal,
        images: Sequence[tuple[str, ...]] = (),
    ) -> list[Listed]:
        """The same with the `k` most probable tokens in the place of each; errors are those of `score`."""
        return [
            Listed(
                [float(token["logprob"]) for token in tokens],
                [[int(other) for other, _ in token[OTHERS]] for token in tokens],
                [[float(logprob) for _, logprob in token[OTHERS]] for token in tokens],
            )
            for tokens in self._asked(sequences, k, stop, images)
        ]

    def _asked(
        self, sequences: Sequence[tuple[list[int], int]], top: int, stop: StopSignal, images: Sequence[tuple[str, ...]]
    ) -> list[list[dict[str, Any]]]:
        """The server's entries for the tokens from `start` on of each sequence."""
        shown = images or [()] * len(sequences)
        requests = [
            self._request(str(n), ids, own, top) for n, ((ids, _), own) in enumerate(zip(sequences, shown, strict=True))
        ]
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
        return [found[request.key][start - 1 :] for request, (_, start) in zip(requests, sequences, strict=True)]

    def _request(self, key: str, ids: Sequence[int], images: tuple[str, ...], top: int) -> _ScoreRequest:
        if not images:
            return _ScoreRequest(key, (), tuple(ids), top=top)
        assert self._vision is not None, "a student of text is given no images"
        return _ScoreRequest(key, (), tuple(ids), ImagePrompt(tuple(self._vision.marked(ids, images)), images), top)

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


_SHOWN = "shown"
"""Key of a body that is not sent as it is: its `ImagePrompt`."""


class _Client(CompletionsClient):
    """The API teacher, asking for scores instead of answers."""

    def _body(self, model: str, request: GenerationRequest) -> dict[str, Any]:
        assert isinstance(request, _ScoreRequest)
        # vLLM generates at least one token. 0 log-probabilities means only the token's own, without alternatives.
        body = {"model": model, "prompt": list(request.ids), "max_tokens": 1, "prompt_logprobs": request.top}
        return body if request.shown is None else {**body, _SHOWN: request.shown}

    def _size(self, request: GenerationRequest) -> Size:
        assert isinstance(request, _ScoreRequest)
        return Size(len(request.ids), 1, len(request.ids), 1)

    async def _attempt(self, client: Any, body: dict[str, Any]) -> dict[str, Any]:
        ids, shown, top = body["prompt"], body.get(_SHOWN), body["prompt_logprobs"]
        if shown is None:
            content = await self._content(client, body, "scores")
        else:
            sent = shown.body(body["model"], self._images, self._config.images_sent.max_pixels, top)
            try:
                content = await self._content(client, sent, "scores", address_of(str(client.base_url)))
            except Exception as error:
                raise told(self._faults.fault(error)) from None
            check_prompt(content, ids, len(shown.images))
        return {"text": None, "extra": {"tokens": target_logprobs(content, ids, top)}}

    def given_up(self, failure: Failure) -> TeacherError:
        """The error for a request without scores; training needs all of them."""
        detail = failure.detail.lower()
        if failure.reason == NO_LOGPROBS:
            hint = "this on_policy.objective needs a vLLM server (it is asked for prompt_logprobs)"
        elif "logprobs" in detail and "max allowed" in detail:
            hint = "start the server with --max-logprobs of on_policy.top_k at least, or lower the latter"
        elif failure.reason in HINTS:
            hint = HINTS[failure.reason]
        elif any(words in detail for words in _TOO_LONG):
            hint = "start the server with a larger --max-model-len than training.max_length, or lower the latter"
        elif "out of vocabulary" in detail:
            hint = "the student's vocabulary is not the teacher's; use black_box_kd_api"
        else:
            hint = "check the server; the same command then goes on from the last checkpoint"
        times = f" after {failure.attempts} attempts" if failure.attempts > 1 else ""
        return TeacherError(f"{self._where} gives no scores{times}: {failure.reason}: {failure.detail}\n    → {hint}")
