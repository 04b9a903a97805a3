"""A teacher behind any OpenAI-compatible API, through the openai SDK with a retry policy of our own.

Bounded concurrency, streaming or not. A complete answer, whatever is in it, was paid for and is never asked for
again; only attempts that brought none are repeated (see `retry.py`).
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from easydistill.config.inference import ApiInferenceConfig
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.run_directory import LOGGER
from easydistill.engine.secrets import Redactor
from easydistill.errors import QuotaExhausted, TeacherError
from easydistill.teachers._chat_completion import RAW_LIMIT, StreamParser, parse_body
from easydistill.teachers.base import Completion, Failure, GenerationRequest, Outcome, RecordOutcomes, bare_url
from easydistill.teachers.retry import Fault, Verdict, from_status, pause

POLL_SECONDS = 0.1
CONNECT_SECONDS = 30.0
_MENDS = {
    "auth": "check inference.api_key",
    "model": "check inference.model",
    "quota": "top up the account; the same command then goes on, and asks for nothing it has already",
}


class OpenAITeacher:
    """Answers through `POST {base_url}/chat/completions`."""

    def __init__(self, inference: ApiInferenceConfig, redactor: Redactor) -> None:
        self._config = inference
        self._redactor = redactor
        self._model = inference.model
        # What the server turned out not to know; remembered for all later requests.
        self._length_name = "max_tokens"
        self._asks_for_usage = True
        self._fatal: Fault | None = None
        self._jitter = random.Random()

    def identity(self) -> dict[str, Any]:
        """Endpoint and model.

        Raises:
            TeacherError: no model is configured and the server does not tell one.
        """
        return {"base_url": bare_url(self._config.base_url), "model": self._model_name()}

    def close(self) -> None:
        """Nothing stays open between two calls of `generate`."""

    def _options(self) -> dict[str, Any]:
        import httpx2

        timeout = self._config.timeout
        return {
            "base_url": self._config.base_url,
            "api_key": self._config.api_key.get_secret_value(),
            "max_retries": 0,
            "timeout": httpx2.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout), pool=None),
        }

    def _model_name(self) -> str:
        if self._model is None:
            self._model = self._first_model()
            LOGGER.info("inference.model is not set; using %s", self._model)
        return self._model

    def _first_model(self) -> str:
        import openai

        with openai.OpenAI(**self._options()) as client:
            attempt = 1
            while True:
                try:
                    models = client.models.list()
                    return models.data[0].id
                except (IndexError, AttributeError, TypeError):
                    raise self._no_model("it lists none") from None
                except Exception as error:
                    fault = self._fault(error)
                wait = pause(attempt, fault, self._config.max_retry_wait, self._jitter)
                if fault.verdict is not Verdict.RETRY or wait is None or attempt > self._config.max_retries:
                    if fault.reason == "auth":
                        raise self._error(fault)
                    raise self._no_model(str(fault))
                time.sleep(wait)
                attempt += 1

    def _no_model(self, why: str) -> TeacherError:
        where = bare_url(self._config.base_url)
        mend = "set inference.model, or check that the server runs"
        return TeacherError(self._redactor.text(f"{where}/models does not name a model: {why}\n    → {mend}"))

    # --- generating -------------------------------------------------------------------------------------------

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        done: Callable[[str], bool],
        record: RecordOutcomes,
        stop: StopSignal,
    ) -> None:
        waiting = (request for request in requests if not done(request.key))
        self._model_name()
        self._fatal = None

        def work() -> None:
            asyncio.run(self._generate(waiting, record, stop))

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            work()
        else:
            _in_thread(work)
        if self._fatal is not None:
            raise self._error(self._fatal)

    async def _generate(self, waiting: Iterator[GenerationRequest], record: RecordOutcomes, stop: StopSignal) -> None:
        import httpx2
        import openai

        limit = self._config.max_concurrency
        transport = openai.DefaultAsyncHttpxClient(
            limits=httpx2.Limits(max_connections=limit, max_keepalive_connections=limit, keepalive_expiry=30)
        )
        async with openai.AsyncOpenAI(**self._options(), http_client=transport) as client, asyncio.TaskGroup() as group:

            async def worker() -> None:
                while not self._halted(stop):
                    request = next(waiting, None)
                    if request is None:
                        return
                    outcome = await self._ask(client, request, stop)
                    if outcome is not None:
                        record([outcome])

            for _ in range(limit):
                group.create_task(worker())

    def _halted(self, stop: StopSignal) -> bool:
        return stop.requested or self._fatal is not None

    async def _ask(self, client: Any, request: GenerationRequest, stop: StopSignal) -> Outcome | None:
        """Ask until there is an answer or no hope; None where the run halts before that."""
        attempt = 1
        while True:
            started = time.monotonic()
            try:
                arguments = await self._attempt(client, request)
                seconds = round(time.monotonic() - started, 3)
                return Completion(key=request.key, attempts=attempt, seconds=seconds, **arguments)
            except Exception as error:
                fault = self._fault(error)
            if fault.verdict in {Verdict.QUOTA, Verdict.FATAL}:
                self._fatal = self._fatal or fault
                return None
            if self._adapts_to(fault):
                continue
            wait = pause(attempt, fault, self._config.max_retry_wait, self._jitter)
            if fault.verdict is Verdict.REJECT or wait is None or attempt > self._config.max_retries:
                raw = self._redactor.text(fault.raw[:RAW_LIMIT]) if fault.raw else None
                passing = fault.verdict is Verdict.RETRY
                return Failure(request.key, fault.reason, self._redactor.text(fault.detail), attempt, passing, raw)
            if not await self._sleep(wait, stop):
                return None
            attempt += 1

    async def _sleep(self, seconds: float, stop: StopSignal) -> bool:
        """Sleep; False where the run halts meanwhile."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._halted(stop):
                return False
            await asyncio.sleep(min(left, POLL_SECONDS))
        return True

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        config = self._config
        body: dict[str, Any] = {
            "model": self._model,
            "messages": list(request.messages),
            self._length_name: config.max_new_tokens,
        }
        for name in ("temperature", "top_p", "seed"):
            value = getattr(config, name)
            if value is not None:
                body[name] = value
        if config.stream:
            body["stream"] = True
            if self._asks_for_usage:
                body["stream_options"] = {"include_usage": True}
        return body

    async def _attempt(self, client: Any, request: GenerationRequest) -> dict[str, Any]:
        """One request; the arguments of a `Completion`."""
        import httpx2

        # Through the SDK's own client, but without its response models: validating them costs more than the call.
        body = self._body(request)
        if not self._config.stream:
            response = await client.post("/chat/completions", cast_to=httpx2.Response, body=body)
            return parse_body(response.content)
        parser = StreamParser()
        try:
            async with client.chat.completions.with_streaming_response.create(**body) as stream:
                if "json" in stream.headers.get("content-type", ""):
                    # Servers that cannot stream answer whole; so do gateways that report an error.
                    return parse_body(await stream.read())
                async for line in stream.iter_lines():
                    parser.feed(line)
                    if parser.done:
                        break
        except httpx2.TimeoutException:
            raise
        except httpx2.HTTPError:
            # Broken in the middle: complete if the answer was, a dropped stream if not.
            if parser.answer.finish_reason is None:
                raise
        return parser.result()

    def _adapts_to(self, fault: Fault) -> bool:
        """Whether the server refused an optional part of the request that can be left out or renamed."""
        if fault.reason not in {"http_400", "http_422"}:
            return False
        if "max_completion_tokens" in fault.detail and self._length_name == "max_tokens":
            self._length_name = "max_completion_tokens"
            return True
        if "stream_options" in fault.detail and self._asks_for_usage:
            self._asks_for_usage = False
            return True
        return False

    # --- what went wrong --------------------------------------------------------------------------------------

    def _fault(self, error: Exception) -> Fault:
        """The fault behind an exception; anything that is not a fault of server or network is raised again."""
        import httpx2
        import openai

        if isinstance(error, Fault):
            return error
        if isinstance(error, openai.APITimeoutError | httpx2.TimeoutException):
            return Fault("timeout", f"no byte for {self._config.timeout:g} s", Verdict.RETRY)
        if isinstance(error, openai.APIStatusError):
            response = error.response
            try:
                text = response.text
            except httpx2.ResponseNotRead:
                text = str(error)
            return from_status(response.status_code, text, response.headers, time.time())
        if isinstance(error, openai.APIConnectionError):
            cause = error.__cause__
            return Fault("connection", f"{type(cause).__name__}: {cause}" if cause else str(error), Verdict.RETRY)
        if isinstance(error, httpx2.HTTPError):
            return Fault("stream_dropped", f"{type(error).__name__}: {error}", Verdict.RETRY)
        if isinstance(error, UnicodeDecodeError):
            return Fault("garbage", "the stream is not UTF-8 text", Verdict.RETRY)
        raise error

    def _error(self, fault: Fault) -> TeacherError:
        kind = QuotaExhausted if fault.verdict is Verdict.QUOTA else TeacherError
        mend = _MENDS.get(fault.reason, "check the server")
        where = bare_url(self._config.base_url)
        return kind(self._redactor.text(f"{where} refuses to answer: {fault.detail}\n    → {mend}"))


def _in_thread(work: Callable[[], None]) -> None:
    """Run in a thread of its own (an event loop runs in this one, as in a notebook) and hand on its error."""
    errors: list[BaseException] = []

    def target() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target, name="easydistill-openai")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
