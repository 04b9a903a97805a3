"""A teacher behind any OpenAI-compatible API, through the openai SDK with a retry policy of our own.

Streaming or not. A complete answer, whatever is in it, was paid for and is never asked for again; only attempts that
brought none are repeated (`retry.py`). When a request may start, and at which of several servers, is the dispatcher's
to say: concurrency found out by trying, limits, budget (`_dispatch.py`). Whatever a server sent passes through the
redactor before it is handed on: servers echo keys.
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
from typing import Any

import httpx2
import openai

from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import (
    Completion,
    GenerationRequest,
    Outcome,
    RecordOutcomes,
    bare_url,
    endpoint_name,
)
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.run_directory import LOGGER
from easydistill.engine.secrets import Redactor
from easydistill.errors import TeacherError
from easydistill.teachers._batch import BatchRun, BatchStage, BatchTools, until_stopped
from easydistill.teachers._batch_calls import BatchCalls
from easydistill.teachers._chat_completion import StreamParser, garbage, read_body, request_body
from easydistill.teachers._concurrency import Window
from easydistill.teachers._dispatch import Dispatcher
from easydistill.teachers._faults import FaultReader
from easydistill.teachers._limits import RateLimits, Size, TokenEstimator
from easydistill.teachers._routing import Endpoint, Router
from easydistill.teachers._run import Clients, Run, in_thread
from easydistill.teachers.ledger import Ledger
from easydistill.teachers.retry import Fault, Verdict, pause

POLL_SECONDS = 0.1
CONNECT_SECONDS = 30.0
PATIENCE = 10
"""Times `timeout` that a whole answer, or a stream's next event, may take from a server that sends a byte now and
then, so that the time-out itself never strikes."""
LINGER_SECONDS = 5.0
"""How long a stream may take to end once its answer is complete."""
POOL_SIZE = 16
"""Workers that share a pool of connections: a pool's work for one request grows with all the connections it holds."""


class OpenAITeacher:
    """Answers through `POST {base_url}/chat/completions`, of one server or of several.

    Attributes:
        ledger: what answers took so far; earlier attempts' answers may be added before `generate`.

    Args:
        batches: where batches are kept; needed for `inference.batch`.
    """

    def __init__(self, inference: ApiInferenceConfig, redactor: Redactor, batches: BatchStage | None = None) -> None:
        assert batches is not None or inference.batch is None
        self._config = inference
        self._batches = batches
        self._redactor = redactor
        self._faults = FaultReader(inference, redactor)
        self._model = inference.model
        self._where = ", ".join(map(bare_url, inference.base_urls))
        # What is learnt of servers is remembered for all later requests.
        ceiling, adaptive = inference.max_concurrency, inference.adaptive_concurrency
        self._router = Router([Endpoint(url, Window(ceiling, adaptive)) for url in inference.base_urls])
        self._limits = RateLimits(inference.requests_per_minute, inference.tokens_per_minute)
        self._estimator = TokenEstimator(inference.max_new_tokens)
        self.ledger = Ledger(inference.prices, inference.max_cost, inference.max_tokens_total)
        self._jitter = random.Random()
        for url in inference.base_urls:
            # A user and password in the URL, as the header spells them. (The config registers the plain password.)
            user = urllib.parse.unquote(urllib.parse.urlsplit(url).netloc.rpartition("@")[0])
            redactor.register(base64.b64encode(user.encode()).decode())

    def identity(self) -> dict[str, Any]:
        """Endpoint and model.

        Raises:
            TeacherError: no model is configured and the server does not tell one.
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
        """What the first server that tells says."""
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
        )
        async with openai.AsyncOpenAI(**self._options(endpoint.url)) as client:
            patience = PATIENCE * config.timeout
            calls = BatchCalls(client, endpoint.url, self._faults, patience, config.max_retries, config.max_retry_wait)
            await until_stopped(BatchRun(tools, stage, calls, requests, done, record).run(), stop)

    async def _generate(
        self, model: str, waiting: Iterator[GenerationRequest], workers: int, record: RecordOutcomes, stop: StopSignal
    ) -> TeacherError | None:
        """Answer all of `waiting`; the error, if any, that ends this early."""
        self._router.reopen()
        run = Run(stop, self._dispatcher)
        limits = httpx2.Limits(max_connections=POOL_SIZE, max_keepalive_connections=POOL_SIZE)
        certificates = httpx2.create_ssl_context()
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:

            def make(url: str) -> openai.AsyncOpenAI:
                http = openai.DefaultAsyncHttpxClient(limits=limits, verify=certificates)
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

            watch = group.create_task(run.watch(POLL_SECONDS))
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
        """Ask until there is an answer or no hope; None where the run is over before that."""
        attempt = 1
        avoid: Endpoint | None = None
        while True:
            ticket = await run.desk.start(self._size(request), avoid)
            if ticket is None:
                return None
            endpoint = ticket.endpoint
            started = time.monotonic()
            body = self._body(model, request)
            sent = endpoint.features.shape(body)
            try:
                arguments = self._redactor.value(await self._attempt(clients.of(endpoint), sent))
                seconds = round(time.monotonic() - started, 3)
                answer = Completion(key=request.key, attempts=attempt, seconds=seconds, **arguments)
            except Exception as error:
                try:
                    fault = self._faults.fault(error)
                except Exception:
                    run.desk.dropped(ticket)
                    raise
            else:
                run.desk.answered(ticket, answer)
                run.breaker.add_answer()
                return answer
            if fault.verdict in {Verdict.QUOTA, Verdict.FATAL}:
                self._refuses(endpoint, fault, run)
                run.desk.dropped(ticket)
                avoid = endpoint
                continue
            if endpoint.features.adapts_to(fault, body, sent):
                run.desk.dropped(ticket)
                continue
            run.desk.faulted(ticket, fault)
            wait = pause(attempt, fault, self._config.max_retry_wait, self._jitter)
            if fault.verdict is Verdict.REJECT or wait is None or attempt > self._config.max_retries:
                failure = self._faults.failure(request.key, fault, attempt)
                if failure.passing and (trip := run.breaker.add_failure(failure.reason, failure.detail)):
                    run.end(TeacherError(f"{self._where}: {trip.words()}"))
                return failure
            avoid = endpoint
            # Another server need not be waited for, but for a while only: all of them may have the same trouble.
            at_once = attempt < len(self._router.endpoints) and self._router.has_another(endpoint, time.monotonic())
            if not at_once and not await run.sleep(wait):
                return None
            attempt += 1

    def _size(self, request: GenerationRequest) -> Size:
        return self._estimator.size(request.messages)

    def _refuses(self, endpoint: Endpoint, fault: Fault, run: Run) -> None:
        """A server answers nobody; the run goes on at the others, if there are any."""
        if endpoint.refusal is None:
            endpoint.refusal = fault
            error = self._faults.error(fault, endpoint.url)
            if self._router.all_refuse():
                run.end(error)
            else:
                LOGGER.warning("%s", error)

    def _body(self, model: str, request: GenerationRequest) -> dict[str, Any]:
        """What is sent; whoever asks for something else than answers has its own."""
        return request_body(self._config, model, request)

    async def _attempt(self, client: Any, body: dict[str, Any]) -> dict[str, Any]:
        """One request; the arguments of a `Completion`."""
        patience = PATIENCE * self._config.timeout
        try:
            async with asyncio.timeout(patience) as guard:
                # Through the SDK's own client, but without its models and decoders: they cost more than the call.
                response = await client.post(
                    "/chat/completions", cast_to=httpx2.Response, body=body, stream=True, stream_cls=openai.AsyncStream
                )
                try:
                    # Servers that cannot stream answer whole; so do gateways that report an error.
                    if self._config.stream and "json" not in response.headers.get("content-type", ""):
                        return await self._read_stream(response, guard, patience)
                    return read_body(await response.aread())
                finally:
                    await response.aclose()
        except TimeoutError:
            if not guard.expired():
                raise
            raise Fault("timeout", f"no answer after {patience:g} s", Verdict.RETRY) from None

    async def _read_stream(self, response: httpx2.Response, guard: asyncio.Timeout, patience: float) -> dict[str, Any]:
        """The answer in a stream of events."""
        parser = StreamParser()
        try:
            try:
                await _receive(response, parser, guard, patience)
            except (httpx2.HTTPError, TimeoutError, Fault) as error:
                # Broken after the answer's end: the answer is there and was paid for.
                if not _is_complete(parser):
                    raise self._faults.fault(error) from None
            arguments = parser.result()
            if all(arguments[name] is None for name in ("finish_reason", "text", "reasoning")):
                raise garbage("the stream holds no answer", "")
            return arguments
        except Fault as fault:
            fault.raw = parser.raw
            raise


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
                # What still follows is usage and the end; reading it keeps the connection.
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
