"""A teacher behind any OpenAI-compatible API, through the openai SDK with a retry policy of our own.

Responses may be streamed. A complete answer, whatever its content, was paid for and is never asked for again; only
attempts without an answer are repeated (`retry.py`). The dispatcher decides when a request starts and at which server,
by concurrency, limits and budget (`dispatch.py`). Everything that a server sends passes through the redactor before it
is handed on, because servers echo keys.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import httpx2
import openai

from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import (
    Completion,
    Failure,
    GenerationRequest,
    Outcome,
    RecordOutcomes,
    bare_url,
    endpoint_name,
)
from easydistill.data.images import ImageStore
from easydistill.engine.budget import Budget
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.run_directory import LOGGER
from easydistill.engine.secrets import Redactor
from easydistill.errors import TeacherError
from easydistill.teachers.ledger import Ledger
from easydistill.teachers.openai.batch.calls import BatchCalls
from easydistill.teachers.openai.batch.flight import BatchTools
from easydistill.teachers.openai.batch.run import BatchRun, BatchStage, until_stopped
from easydistill.teachers.openai.chat_completion import StreamParser, garbage, read_body, request_body
from easydistill.teachers.openai.dispatch import Dispatcher
from easydistill.teachers.openai.faults import FaultReader
from easydistill.teachers.openai.limits import RateLimits
from easydistill.teachers.openai.retry import Fault, Verdict, pause
from easydistill.teachers.openai.routing import Endpoint, Router
from easydistill.teachers.openai.window import Window
from easydistill.teachers.openai.workers import Clients, Run, in_thread
from easydistill.teachers.pool.board import MOST_DEATHS
from easydistill.teachers.pool.teacher import WORKER_DIED
from easydistill.teachers.sizes import Size, TokenEstimator

POLL_SECONDS = 0.1
CONNECT_SECONDS = 30.0
PATIENCE = 10
"""Limit for a whole answer, or for a stream's next event, as a multiple of `timeout`: a server that keeps sending
single bytes never exceeds `timeout` itself."""
LINGER_SECONDS = 5.0
"""How long to wait for a stream's end once its answer is complete."""
POOL_SIZE = 16
"""Workers that share a pool of connections: a pool's work per request grows with the number of its connections."""


class OpenAITeacher:
    """Answers through `POST {base_url}/chat/completions` of one or several servers.

    Attributes:
        ledger: the spending so far; answers of earlier attempts may be added before `generate`.
        uses_proxies: whether the proxies that the environment names are between it and the servers.

    Args:
        batches: where batches are stored; required for `inference.batch`.
        images: holds those of requests.
        budget: what it may spend together with other teachers, if it shares one.
    """

    uses_proxies: ClassVar[bool] = True

    def __init__(
        self,
        inference: ApiInferenceConfig,
        redactor: Redactor,
        batches: BatchStage | None = None,
        images: ImageStore | None = None,
        budget: Budget | None = None,
    ) -> None:
        assert batches is not None or inference.batch is None
        self._config = inference
        self._batches = batches
        self._images = images or ImageStore()
        self._redactor = redactor
        self._faults = FaultReader(inference, redactor)
        self._model = inference.model
        self._where = ", ".join(map(bare_url, inference.base_urls))
        # Servers' states are kept for all later calls of `generate`.
        ceiling, adaptive = inference.max_concurrency, inference.adaptive_concurrency
        self._router = Router([Endpoint(url, Window(ceiling, adaptive)) for url in inference.base_urls])
        self._limits = RateLimits(inference.requests_per_minute, inference.tokens_per_minute)
        self._estimator = TokenEstimator(inference.max_new_tokens)
        self.ledger = Ledger(
            inference.token_prices,
            inference.max_cost,
            inference.max_tokens_total,
            budget,
            built_in=None if inference.built_in_price is None else inference.built_in_price.as_of,
            currency=None if inference.built_in_price is None else inference.built_in_price.currency,
        )
        self._jitter = random.Random()
        for url in inference.base_urls:
            # User and password of the URL, as the header encodes them. (The config registers the plain password.)
            user = urllib.parse.unquote(urllib.parse.urlsplit(url).netloc.rpartition("@")[0])
            redactor.register(base64.b64encode(user.encode()).decode())

    def identity(self) -> dict[str, Any]:
        """Endpoint and model.

        Raises:
            TeacherError: no model is configured and the server does not list one.
        """
        return {"base_url": endpoint_name(self._config.base_urls), "model": self._model_name()}

    def close(self) -> None:
        """Nothing stays open between two calls of `generate`."""

    def _options(self, url: str) -> dict[str, Any]:
        timeout = self._config.timeout
        return {
            "base_url": url,
            "api_key": self._config.api_key.get_secret_value(),
            "max_retries": 0,
            "timeout": httpx2.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout), pool=None),
        }

    # --- the model's name -------------------------------------------------------------------------------------

    def _model_name(self) -> str:
        if self._model is None:
            self._model = self._first_model_of_any()
            LOGGER.info("inference.model is not set; using %s", self._model)
        return self._model

    def _first_model_of_any(self) -> str:
        """The model that the first responding server lists."""
        *others, last = self._config.base_urls
        for url in others:
            try:
                return self._first_model(url)
            except TeacherError as error:
                LOGGER.warning("%s", self._faults.shown(str(error)))
        return self._first_model(last)

    def _first_model(self, url: str) -> str:
        with openai.OpenAI(**self._options(url)) as client:
            attempt = 1
            while True:
                try:
                    content = client.get("/models", cast_to=httpx2.Response).content
                    break
                except Exception as error:
                    fault = self._faults.fault(error)
                wait = pause(attempt, fault, self._config.max_retry_wait, self._jitter)
                if fault.reason in {"auth", "quota"}:
                    raise self._faults.error(fault, url)
                if fault.verdict is not Verdict.RETRY or wait is None or attempt > self._config.max_retries:
                    raise self._no_model(url, str(fault))
                time.sleep(wait)
                attempt += 1
        try:
            listed = json.loads(content)["data"]
            name = listed[0]["id"] if listed else None
        except (ValueError, LookupError, TypeError, RecursionError):
            raise self._no_model(url, "the answer is not a list of models") from None
        if not isinstance(name, str):
            raise self._no_model(url, "it lists none")
        return name

    def _no_model(self, url: str, why: str) -> TeacherError:
        head = f"{bare_url(url)}/models does not name a model: {self._faults.shown(why)}"
        return TeacherError(f"{head}\n    → set inference.model, or check that the server runs")

    # --- generating -------------------------------------------------------------------------------------------

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        done: Callable[[str], bool],
        record: RecordOutcomes,
        stop: StopSignal,
    ) -> None:
        if stop.requested or not requests:
            return
        waiting = (request for request in requests if not done(request.key))
        workers = min(self._config.max_concurrency, len(requests))
        model = self._model_name()

        def work() -> TeacherError | None:
            if self._batches is not None and (self._config.batch or self._waits_for_batches(requests, done)):
                asyncio.run(self._generate_in_batches(self._batches, requests, done, record, stop))
            if self._config.batch is not None or stop.requested:
                return None
            return asyncio.run(self._generate(model, waiting, workers, record, stop))

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            error = work()
        else:
            error = in_thread(work, stop)
        if error is not None:
            raise error

    def _waits_for_batches(self, requests: Sequence[GenerationRequest], done: Callable[[str], bool]) -> bool:
        """Whether one of the requests is in a batch that an earlier run submitted."""
        assert self._batches is not None
        keys = {request.key for request in requests if not done(request.key)}
        return self._batches.book.holds_any(self.identity(), keys)

    async def _generate_in_batches(
        self,
        stage: BatchStage,
        requests: Sequence[GenerationRequest],
        done: Callable[[str], bool],
        record: RecordOutcomes,
        stop: StopSignal,
    ) -> None:
        config, endpoint = self._config, self._router.endpoints[0]
        tools = BatchTools(
            config,
            self.identity(),
            self._faults,
            self._redactor,
            self.ledger,
            self._estimator,
            endpoint.features,
            self._images,
        )
        async with openai.AsyncOpenAI(**self._options(endpoint.url)) as client:
            patience = PATIENCE * config.timeout
            calls = BatchCalls(client, endpoint.url, self._faults, patience, config.max_retries, config.max_retry_wait)
            await until_stopped(BatchRun(tools, stage, calls, requests, done, record).run(), stop)

    async def _generate(
        self, model: str, waiting: Iterator[GenerationRequest], workers: int, record: RecordOutcomes, stop: StopSignal
    ) -> TeacherError | None:
        """Answer all of `waiting`; returns the error that ended this early, if there was one."""
        self._router.reopen()
        run = Run(stop, self._dispatcher)
        limits = httpx2.Limits(max_connections=POOL_SIZE, max_keepalive_connections=POOL_SIZE)
        certificates = httpx2.create_ssl_context()
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:

            def make(url: str) -> openai.AsyncOpenAI:
                http = openai.DefaultAsyncHttpxClient(limits=limits, verify=certificates, trust_env=self.uses_proxies)
                return openai.AsyncOpenAI(**self._options(url), http_client=http)

            pools = [Clients(make, {}) for _ in range(0, workers, POOL_SIZE)]
            for pool in pools:
                stack.push_async_callback(pool.aclose)

            async def worker(clients: Clients) -> None:
                try:
                    while not run.over and (request := next(waiting, None)) is not None:
                        outcome = await self._ask(clients, model, request, run)
                        if outcome is not None:
                            record([outcome])
                except Exception as error:
                    run.end(bug=error)

            watch = group.create_task(run.watch(POLL_SECONDS, self._broken))
            tasks = [group.create_task(worker(pools[n // POOL_SIZE])) for n in range(workers)]
            await asyncio.wait(tasks)
            watch.cancel()
        if run.bug is not None:
            raise run.bug
        return run.error

    def _dispatcher(self, run: Run) -> Dispatcher:
        return Dispatcher(
            self._router,
            self._limits,
            self._estimator,
            self.ledger,
            clock=time.monotonic,
            is_over=lambda: run.over,
            broke=lambda words: run.end(TeacherError(words)),
        )

    async def _ask(self, clients: Clients, model: str, request: GenerationRequest, run: Run) -> Outcome | None:
        """Ask until there is an answer or no attempt is left; None if the run is over before that.

        A request that was in hand at several deaths of servers is suspected: it is asked with nothing beside it, and
        given up if that server dies too. So what was only near a death is not lost.
        """
        attempt, died = 1, 0
        avoid: Endpoint | None = None
        while True:
            ticket = await run.dispatcher.start(self._size(request), avoid, alone=died >= MOST_DEATHS)
            if ticket is None:
                return None
            endpoint = ticket.endpoint
            deaths = endpoint.deaths
            body = self._body(model, request)
            sent = endpoint.features.shape(body)
            try:
                found = await self._answer_or_fault(clients.of(endpoint), sent, request.key, attempt)
            except Exception:
                run.dispatcher.dropped(ticket)
                raise
            if isinstance(found, Completion):
                run.dispatcher.answered(ticket, found)
                run.breaker.add_answer()
                return found
            fault: Fault = found
            if await self._has_died(endpoint, deaths, fault):
                run.dispatcher.dropped(ticket)
                died, avoid = died + 1, endpoint
                if died > MOST_DEATHS:
                    return self._failure(request.key, _killed(died, fault), died, run)
                continue
            if fault.verdict in {Verdict.QUOTA, Verdict.FATAL}:
                self._refuses(endpoint, fault, run)
                run.dispatcher.dropped(ticket)
                avoid = endpoint
                continue
            if endpoint.features.adapts_to(fault, body, sent):
                run.dispatcher.dropped(ticket)
                continue
            run.dispatcher.faulted(ticket, fault)
            wait = pause(attempt, fault, self._config.max_retry_wait, self._jitter)
            if fault.verdict is Verdict.REJECT or wait is None or attempt > self._config.max_retries:
                return self._failure(request.key, fault, attempt, run)
            avoid = endpoint
            if not await self._pause(endpoint, attempt, wait, run):
                return None
            attempt += 1

    def _failure(self, key: str, fault: Fault, attempt: int, run: Run) -> Failure:
        """Give a request up; too many failures end the run."""
        failure = self._faults.failure(key, fault, attempt)
        if failure.passing and (trip := run.breaker.add_failure(failure.reason, failure.detail)):
            run.end(TeacherError(f"{self._where}: {trip.words()}"))
        return failure

    async def _pause(self, endpoint: Endpoint, attempt: int, wait: float, run: Run) -> bool:
        """Wait before the next attempt; False if the run is over before that."""
        # Another server can be asked without a pause, but only once each: all may have the same problem.
        at_once = attempt < len(self._router.endpoints) and self._router.has_another(endpoint)
        return at_once or await run.sleep(wait)

    async def _answer_or_fault(self, client: Any, body: dict[str, Any], key: str, attempt: int) -> Completion | Fault:
        """One attempt. An exception that is no fault of server or network is raised."""
        started = time.monotonic()
        try:
            arguments = self._redactor.value(await self._attempt(client, body))
        except Exception as error:
            return self._faults.fault(error)
        return Completion(key=key, attempts=attempt, seconds=round(time.monotonic() - started, 3), **arguments)

    def _size(self, request: GenerationRequest) -> Size:
        return self._estimator.size(request.messages, request.tools)

    def _refuses(self, endpoint: Endpoint, fault: Fault, run: Run) -> None:
        """A server refuses all requests; the run continues at the others, if there are any."""
        if endpoint.refusal is None:
            endpoint.refusal = fault
            error = self._faults.error(fault, endpoint.url)
            if self._router.all_refuse():
                run.end(error)
            else:
                LOGGER.warning("%s", error)

    def _broken(self) -> TeacherError | None:
        """Why no server can be asked any more, where a subclass knows; asked again and again."""
        return None

    async def _has_died(self, endpoint: Endpoint, deaths: int, fault: Fault) -> bool:
        """Whether a fault is the death of a server, where a subclass starts it again: no attempt of the request's.

        Args:
            deaths: those of the endpoint before the attempt.
        """
        return False

    def _body(self, model: str, request: GenerationRequest) -> dict[str, Any]:
        """The body to send; a subclass that asks for something other than answers overrides it."""
        return request_body(self._config, model, request)

    async def _attempt(self, client: Any, body: dict[str, Any]) -> dict[str, Any]:
        """One request; the arguments of a `Completion`."""
        patience = PATIENCE * self._config.timeout
        body = self._with_images(body)
        try:
            async with asyncio.timeout(patience) as guard:
                # The SDK's client without its models and decoders, which cost more than the call.
                response = await client.post(
                    "/chat/completions", cast_to=httpx2.Response, body=body, stream=True, stream_cls=openai.AsyncStream
                )
                try:
                    # Servers that cannot stream send a whole body, and so do gateways that report an error.
                    if self._config.stream and "json" not in response.headers.get("content-type", ""):
                        return await self._read_stream(response, guard, patience)
                    return read_body(await response.aread())
                finally:
                    await response.aclose()
        except TimeoutError:
            if not guard.expired():
                raise
            raise Fault("timeout", f"no answer after {patience:g} s", Verdict.RETRY) from None

    def _with_images(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body as it is sent: until now images were digests, so that nothing else can show their bytes."""
        return self._images.filled(body, self._config.images_sent.max_pixels) if "messages" in body else body

    async def _read_stream(self, response: httpx2.Response, guard: asyncio.Timeout, patience: float) -> dict[str, Any]:
        """The answer in a stream of events."""
        parser = StreamParser()
        try:
            try:
                await _receive(response, parser, guard, patience)
            except (httpx2.HTTPError, TimeoutError, Fault) as error:
                # Broken after the end of the answer, which is complete and was paid for.
                if not _is_complete(parser):
                    raise self._faults.fault(error) from None
            arguments = parser.result()
            if all(arguments[name] in (None, []) for name in ("finish_reason", "text", "reasoning", "tool_calls")):
                raise garbage("the stream holds no answer", "")
            return arguments
        except Fault as fault:
            fault.raw = parser.raw
            raise


def _killed(died: int, fault: Fault) -> Fault:
    """The fault of a request that has killed servers."""
    detail = f"{died} servers died with it, the last one with nothing else in hand: {fault.detail}"
    return Fault(WORKER_DIED, detail, Verdict.RETRY, raw=fault.raw)


async def _receive(response: httpx2.Response, parser: StreamParser, guard: asyncio.Timeout, patience: float) -> None:
    """Feed a stream's lines to the parser.

    Split here, as bytes: httpx's `iter_lines` also splits at U+2028 and other characters that may stand unescaped
    inside JSON.
    """
    clock = asyncio.get_running_loop().time
    rest = b""
    async with asyncio.timeout(None) as linger:
        async for block in response.aiter_bytes():
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                _feed(parser, line)
                if line.startswith(b"data"):
                    guard.reschedule(clock() + patience)
            if linger.when() is None and _is_complete(parser):
                # Only usage and the end follow; reading them keeps the connection usable.
                linger.reschedule(clock() + LINGER_SECONDS)
        _feed(parser, rest)


def _feed(parser: StreamParser, line: bytes) -> None:
    if parser.done:
        return
    try:
        parser.feed(line.decode("utf-8").rstrip("\r"))
    except (UnicodeDecodeError, RecursionError):
        parser.raw += line.decode("utf-8", "replace")
        raise garbage("a line of the stream cannot be read", "") from None


def _is_complete(parser: StreamParser) -> bool:
    return parser.done or parser.answer.finish_reason is not None
