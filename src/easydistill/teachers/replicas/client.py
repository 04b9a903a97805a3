"""Asks the servers for tokens: `POST {base_url}/completions` of vLLM, with a prompt's token ids, and the answer's back.

Concurrency, retries and the choice of a server are those of the API teacher. A request whose server dies is asked again
elsewhere, and that is none of its attempts; one that kills every server that gets it is given up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import Completion, Failure, GenerationRequest, Outcome
from easydistill.engine.secrets import Redactor
from easydistill.errors import TeacherError
from easydistill.teachers.openai.completions import CompletionsClient
from easydistill.teachers.openai.retry import Fault, Verdict, body_in
from easydistill.teachers.openai.routing import Endpoint
from easydistill.teachers.openai.workers import Clients, Run
from easydistill.teachers.sizes import Size

IDS = "ids"
"""Key of `Completion.extra` with the tokens of an answer that has not been read."""
NO_IDS = "no_token_ids"
_ENDS = frozenset({"stop", "length"})
SETTLE_SECONDS = 10.0
"""How long after a fault it may be found that the server has died: vLLM answers 500 to all that it has in hand when its
engine dies, and ends after that."""


@dataclass(frozen=True)
class _Rendered(GenerationRequest):
    """A request as token ids."""

    ids: tuple[int, ...] = ()
    whole: GenerationRequest | None = None


class TokenClient(CompletionsClient):
    """Sends prompts as tokens.

    Args:
        render: a request's tokens, or why it has none.
        sampling: the parameters of a request, as vLLM's API names them.
        read: the answer of a request, given its prompt and a completion with the answer's tokens.
        broken: why no server is left, if so.
    """

    # They are on this machine.
    uses_proxies = False

    def __init__(
        self,
        inference: ApiInferenceConfig,
        redactor: Redactor,
        render: Callable[[GenerationRequest], list[int] | Failure],
        sampling: Callable[[GenerationRequest, int], dict[str, Any]],
        read: Callable[[GenerationRequest, list[int], Completion], Completion],
        broken: Callable[[], TeacherError | None],
    ) -> None:
        super().__init__(inference, redactor)
        self._render, self._sampling, self._read, self._told = render, sampling, read, broken

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return self._router.endpoints

    async def _ask(self, clients: Clients, model: str, request: GenerationRequest, run: Run) -> Outcome | None:
        prompt = self._render(request)
        if isinstance(prompt, Failure):
            return prompt
        asked = _Rendered(request.key, (), ids=tuple(prompt), whole=request)
        outcome = await super()._ask(clients, model, asked, run)
        return self._read(request, prompt, outcome) if isinstance(outcome, Completion) else outcome

    def _broken(self) -> TeacherError | None:
        return self._told()

    async def _has_died(self, endpoint: Endpoint, deaths: int, fault: Fault) -> bool:
        if fault.verdict is not Verdict.RETRY:
            return False
        until = time.monotonic() + (0.0 if fault.reason == "timeout" else SETTLE_SECONDS)
        while endpoint.deaths == deaths and endpoint.refusal is None and time.monotonic() < until:
            await asyncio.sleep(0.05)
        return endpoint.deaths > deaths

    def _body(self, model: str, request: GenerationRequest) -> dict[str, Any]:
        assert isinstance(request, _Rendered) and request.whole is not None
        own = self._sampling(request.whole, len(request.ids))
        return {"model": model, "prompt": list(request.ids), "return_token_ids": True, **own}

    def _size(self, request: GenerationRequest) -> Size:
        assert isinstance(request, _Rendered)
        most = self._config.max_new_tokens
        return Size(len(request.ids), most, len(request.ids), most)

    async def _attempt(self, client: Any, body: dict[str, Any]) -> dict[str, Any]:
        content = await self._content(client, body, "answer")
        return answer_in(content)


def answer_in(content: bytes) -> dict[str, Any]:
    """The arguments of a `Completion` that has the answer's tokens.

    Raises:
        Fault: the body is broken or the answer unfinished (to be retried), or the server gives no tokens (final).
    """
    body = body_in(content)
    try:
        choice, usage = body["choices"][0], body.get("usage") or {}
        reason, ids = choice["finish_reason"], choice.get("token_ids")
        counts = {name: int(usage[name]) for name in ("prompt_tokens", "completion_tokens")}
    except (LookupError, TypeError, AttributeError, ValueError):
        raise Fault("garbage", "the body holds no answer", Verdict.RETRY) from None
    if reason not in _ENDS:
        # A server that is ending aborts what it has.
        raise Fault("unfinished", f"the answer ended with {reason!r}", Verdict.RETRY)
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise Fault(NO_IDS, "the server gives no token ids: vLLM 0.11 or newer does", Verdict.FATAL)
    return {"text": None, "finish_reason": reason, "extra": {IDS: ids}, **counts}
