"""The routes: requests → rows for the engine, and its events → replies and streams."""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from easydistill.contracts.teacher import sample_seed
from easydistill.engine.run_directory import LOGGER
from easydistill.models.structured import SchemaMasks
from easydistill.serving.bodies import ChatBody, CompletionBody, read_body
from easydistill.serving.chats import Chats, Prompt
from easydistill.serving.engine import Engine
from easydistill.serving.exchange import Exchange
from easydistill.serving.problems import ApiProblem, refused
from easydistill.serving.replies import DONE, Head, event
from easydistill.serving.rows import Listener, Row, Sampling

MOST_BYTES = 64 << 20
"""Of a request's body."""
_GONE = 499
"""Nobody reads this status: the client has gone."""


class Service:
    """Answers requests with one model.

    Args:
        name: of the model, in requests.
        key: what clients must send; None if everybody may ask.
    """

    def __init__(self, engine: Engine, chats: Chats, name: str, key: str | None) -> None:
        self._engine, self._chats, self._name, self._key = engine, chats, name, key
        self._created = int(time.time())
        # Tokenizers and templates are not made for several threads at once.
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="reading")

    def app(self) -> Starlette:
        """The application."""
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {ApiProblem: _told, HTTPException: _unknown, Exception: _broken}
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._engine.start()
        try:
            yield
        finally:
            self._engine.close()
            self._reading.shutdown()

    # --- what is there ------------------------------------------------------------------------------------------

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _models(self, request: Request) -> Response:
        self._check_key(request)
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def _model(self, request: Request) -> Response:
        self._check_key(request)
        self._check_name(request.path_params["name"])
        return JSONResponse(self._described())

    def _described(self) -> dict[str, Any]:
        named = {"id": self._name, "object": "model", "created": self._created, "owned_by": "easydistill"}
        return {**named, "max_model_len": self._chats.context}

    def _check_name(self, name: str) -> None:
        if name != self._name:
            message = f"there is no model {name!r} here, only {self._name!r}"
            raise ApiProblem(404, message, "model", "model_not_found")

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            return
        given = request.headers.get("authorization", "").partition("Bearer ")[2].strip()
        if not hmac.compare_digest(given.encode(), self._key.encode()):
            raise ApiProblem(401, "the API key is missing or wrong", code="invalid_api_key")

    # --- answers ------------------------------------------------------------------------------------------------

    async def _chat(self, request: Request) -> Response:
        self._check_key(request)
        body = read_body(ChatBody, await _json_in(request))
        self._check_name(body.model)
        schema, count = body.schema_wanted, body.n or 1

        def read() -> tuple[Prompt, Sequence[SchemaMasks | None]]:
            masks = [None] * count if schema is None else self._chats.masks(schema, count)
            return self._chats.prompt(body), masks

        prompt, masks = await self._in_turn(read)
        exchange = Exchange(Head("chat.completion", self._name), self._chats, body, [prompt])
        with exchange.made():
            exchange.rows = [
                self._row(prompt, body, number, body.most, body.alternatives, exchange.listener(number), mask)
                for number, mask in enumerate(masks)
            ]
            self._engine.submit(exchange.rows)
        return await self._reply(request, exchange)

    async def _complete(self, request: Request) -> Response:
        self._check_key(request)
        body = read_body(CompletionBody, await _json_in(request))
        self._check_name(body.model)
        prompts = await self._in_turn(lambda: [self._chats.tokens(prompt) for prompt in body.prompts])
        exchange = Exchange(Head("text_completion", self._name), self._chats, body, prompts)
        asked = [prompt for prompt in prompts for _ in range(body.n or 1)]
        # OpenAI's default for this endpoint.
        most = 16 if body.max_tokens is None else body.max_tokens
        with exchange.made():
            if body.prompt_logprobs is not None:
                exchange.scores = [asyncio.wrap_future(self._engine.score(prompt.ids)) for prompt in prompts]
            exchange.rows = [
                self._row(prompt, body, number, most, body.logprobs, exchange.listener(number))
                for number, prompt in enumerate(asked)
            ]
            self._engine.submit(exchange.rows)
        return await self._reply(request, exchange)

    def _row(
        self,
        prompt: Prompt,
        body: ChatBody | CompletionBody,
        number: int,
        most: int | None,
        alternatives: int | None,
        listener: Listener,
        masks: SchemaMasks | None = None,
    ) -> Row:
        seed = secrets.randbits(63) if body.seed is None else sample_seed(body.seed, number)
        temperature = 1.0 if body.temperature is None else body.temperature
        top_k = body.top_k if body.top_k and body.top_k > 0 else None
        sampling = Sampling(temperature, body.top_p, top_k, seed, alternatives)
        chats = self._chats
        room = None if chats.context is None else chats.context - len(prompt.ids)
        longest = min(value for value in (most, room) if value is not None) if most or room else None
        if longest is None:
            raise refused("this model's context has no end: set max_tokens", "max_tokens")
        return Row(
            prompt.ids,
            sampling,
            longest,
            chats.ends,
            chats.text_of,
            listener,
            stops=body.stops,
            images=prompt.images,
            masks=masks,
        )

    async def _reply(self, request: Request, exchange: Exchange) -> Response:
        if exchange.body.stream:
            return _Stream(exchange)
        try:
            body = await _unless_gone(request, exchange.whole())
        finally:
            exchange.close()
        return Response(status_code=_GONE) if body is None else JSONResponse(body)

    async def _in_turn(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._reading, work)


class _Stream(StreamingResponse):
    """A stream; if its client goes, the answer is not written any further."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(_events(exchange), media_type="text/event-stream")
        self._exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Not in the generator: it is not even begun for a client that went before its stream.
            self._exchange.close()


async def _events(exchange: Exchange) -> AsyncIterator[bytes]:
    try:
        async for chunk in exchange.chunks():
            yield event(chunk)
        yield DONE
    except ApiProblem as problem:
        yield event(problem.body())


async def _unless_gone(request: Request, answer: Awaitable[dict[str, Any]]) -> dict[str, Any] | None:
    """The answer; None if the client goes before it is there."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    waiting, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        for task in (waiting, leaving):
            task.cancel()


async def _json_in(request: Request) -> Any:
    """
    Raises:
        ApiProblem: the body is no JSON, or too long.
    """
    found = bytearray()
    try:
        async for part in request.stream():
            found += part
            if len(found) > MOST_BYTES:
                raise ApiProblem(413, f"the request has more than {MOST_BYTES:,} bytes")
    except ClientDisconnect:
        raise ApiProblem(_GONE, "the client has gone") from None
    try:
        return json.loads(bytes(found))
    except (ValueError, RecursionError):
        raise refused("the body is not JSON") from None


async def _told(request: Request, problem: ApiProblem) -> Response:
    headers = {"Retry-After": "1"} if problem.status in (429, 503) else None
    return JSONResponse(problem.body(), problem.status, headers)


async def _unknown(request: Request, error: HTTPException) -> Response:
    message = f"{request.method} {request.url.path}: {error.detail}"
    return await _told(request, ApiProblem(error.status_code, message))


async def _broken(request: Request, error: Exception) -> Response:
    LOGGER.error("%s failed", request.url.path, exc_info=error)
    return await _told(request, ApiProblem(500, f"{type(error).__name__}: {error}"))
