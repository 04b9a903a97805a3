"""Requests answered through OpenAI's Batch API: submitted as files, waited for, what is missing submitted again.

What a batch holds is on disk before the server hears of it, and its id before anyone waits for it (`_batch_book.py`): a
run that is killed, at any moment, goes on with the batches it had submitted. Lines of a batch are read and judged as
single answers are; a row counts as missing where the server gave neither an answer nor a lasting reason for none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from easydistill.config.inference import ApiInferenceConfig, BatchConfig
from easydistill.contracts.teacher import Completion, Failure, GenerationRequest, RecordOutcomes
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.run_directory import LOGGER
from easydistill.engine.secrets import Redactor
from easydistill.errors import TeacherError
from easydistill.teachers._batch_book import BatchBook, BatchRecord, batch_line
from easydistill.teachers._batch_calls import BatchCalls, ServerBatch
from easydistill.teachers._batch_reading import BatchReading
from easydistill.teachers._chat_completion import request_body
from easydistill.teachers._faults import FaultReader
from easydistill.teachers._features import Features
from easydistill.teachers._limits import Size, TokenEstimator
from easydistill.teachers.ledger import Ledger, is_counted
from easydistill.teachers.retry import Fault, Verdict

STOP_SECONDS = 0.1
"""How soon a request to stop is noticed."""
LOOK_AGAIN_SECONDS = 2.0
"""Pause before a batch that the server does not list counts as never created."""


@dataclass(frozen=True)
class BatchStage:
    """Where a stage keeps its batches, and whom it tells of them."""

    book: BatchBook
    say: Callable[[str], None]


@dataclass(frozen=True)
class BatchTools:
    """What batches share with single requests to the same server."""

    config: ApiInferenceConfig
    identity: dict[str, Any]
    faults: FaultReader
    redactor: Redactor
    ledger: Ledger
    estimator: TokenEstimator
    features: Features


@dataclass(frozen=True)
class _Row:
    """A request that waits to be submitted."""

    request: GenerationRequest
    attempt: int


@dataclass(frozen=True)
class _Line:
    """A request about to be submitted, and the tokens reserved for it."""

    row: _Row
    size: Size
    content: bytes


@dataclass
class Flight:
    """A batch under way."""

    record: BatchRecord
    id: str
    open: dict[str, Size]
    """Rows that have nothing recorded, with the tokens reserved for them."""


class BatchRun:
    """One call of `generate` through batches.

    Args:
        requests: what is to be answered.
        done: whether a request needs no answer any more.
        record: takes outcomes.
    """

    def __init__(
        self,
        tools: BatchTools,
        stage: BatchStage,
        calls: BatchCalls,
        requests: Sequence[GenerationRequest],
        done: Callable[[str], bool],
        record: RecordOutcomes,
    ) -> None:
        self._tools, self._book, self._say, self._calls = tools, stage.book, stage.say, calls
        self._config = tools.config
        self._requests = {request.key: request for request in requests if not done(request.key)}
        self._done, self._record = done, record
        self._queue: deque[_Row] = deque()
        self._flights: list[Flight] = []
        self._refusal: TeacherError | None = None
        self._holds = False
        """Whether nothing new is submitted until a batch is through."""

    @property
    def _batch(self) -> BatchConfig:
        return self._config.batch or BatchConfig()

    async def run(self) -> None:
        """Take up what is under way, submit the rest, wait for all.

        Without `inference.batch` nothing is submitted, and what is under way is waited for.

        Raises:
            TeacherError: no row can succeed, the server has no Batch API, or the budget has no room for the rest.
        """
        await self._take_up()
        flying = {key for flight in self._flights for key in flight.open}
        self._queue.extend(_Row(request, 1) for key, request in self._requests.items() if key not in flying)
        while True:
            await self._submit_all()
            if self._refusal is not None:
                raise self._refusal
            if not self._flights:
                break
            if not await self._collect_ended():
                await asyncio.sleep(self._batch.poll_interval)
        if self._queue and self._config.batch is not None:
            size = self._tools.estimator.size(self._queue[0].request.messages)
            raise TeacherError(self._tools.ledger.exhausted(size))

    # --- what an earlier run left -----------------------------------------------------------------------------

    async def _take_up(self) -> None:
        for record in self._book.unfinished(self._tools.identity):
            sizes = {
                key: self._tools.estimator.size(body["messages"])
                for key, body in self._book.bodies(record)
                if not self._done(key)
            }
            if not sizes:
                self._book.finish(record)
            if not sizes.keys() & self._requests.keys():
                continue
            batch_id = record.batch_id or await self._lost_id(record)
            if batch_id is None:
                self._book.discard(record)
                continue
            self._say(f"  batch {batch_id} is under way since an earlier run, with {record.rows:,} rows")
            for size in sizes.values():
                self._tools.ledger.reserve(size)
            self._flights.append(Flight(self._book.save(record, batch_id=batch_id), batch_id, sizes))

    async def _lost_id(self, record: BatchRecord) -> str | None:
        """The id of a batch that was perhaps created when the run broke off."""
        if record.file_id is None:
            return None
        found = await self._calls.find(record.token, record.created)
        if found is None:
            await asyncio.sleep(min(LOOK_AGAIN_SECONDS, self._batch.poll_interval))
            found = await self._calls.find(record.token, record.created)
        return None if found is None else found.id

    # --- submitting -------------------------------------------------------------------------------------------

    async def _submit_all(self) -> None:
        """Submit what waits, as far as the budget has room."""
        while self._config.batch is not None and self._refusal is None and not (self._holds and self._flights):
            self._holds = False
            lines = list(self._fitting())
            if not lines:
                return
            await self._submit(lines)

    def _fitting(self) -> Iterator[_Line]:
        """Take rows of one attempt from the queue, as many as fit in one batch, and reserve their tokens."""
        rows = total = 0
        attempt: int | None = None
        while self._queue and rows < self._batch.max_requests and attempt in {None, self._queue[0].attempt}:
            row = self._queue[0]
            size = self._tools.estimator.size(row.request.messages)
            line = batch_line(row.request.key, self._tools.features.shape(self._body(row.request)))
            if len(line) + 1 > self._batch.max_bytes:
                self._queue.popleft()
                detail = f"its line has {len(line):,} bytes, inference.batch.max_bytes is {self._batch.max_bytes:,}"
                self._record([Failure(row.request.key, "prompt_too_long", detail, row.attempt, passing=False)])
                continue
            if total + len(line) + 1 > self._batch.max_bytes or not self._tools.ledger.has_room(size):
                return
            self._queue.popleft()
            self._tools.ledger.reserve(size)
            rows, total, attempt = rows + 1, total + len(line) + 1, row.attempt
            yield _Line(row, size, line)

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        return request_body(self._config, self._tools.identity["model"], request)

    async def _submit(self, lines: list[_Line]) -> None:
        attempt = lines[0].row.attempt
        record = self._book.add(self._tools.identity, attempt, [line.content for line in lines])
        file_id = await self._calls.upload(f"{record.token}.jsonl", self._book.content(record))
        record = self._book.save(record, file_id=file_id)
        made = await self._calls.create(file_id, self._batch.completion_window, record.token, record.created)
        record = self._book.save(record, batch_id=made.id, status=made.status)
        self._flights.append(Flight(record, made.id, {line.row.request.key: line.size for line in lines}))
        again = f", attempt {attempt} of {self._batch.max_rounds}" if attempt > 1 else ""
        self._say(f"  batch {made.id}: {len(lines):,} rows submitted{again}")

    # --- collecting -------------------------------------------------------------------------------------------

    async def _collect_ended(self) -> bool:
        """Look at every batch and take in those that have ended; whether there were any."""
        ended = 0
        for flight in list(self._flights):
            batch = await self._calls.look(flight.id, str(self._book.path(flight.record)))
            if batch.status != flight.record.status:
                flight.record = self._book.save(flight.record, status=batch.status)
                self._say(f"  batch {flight.id}: {batch.status}")
            if batch.has_ended:
                await self._collect(flight, batch)
                ended += 1
        return ended > 0

    async def _collect(self, flight: Flight, batch: ServerBatch) -> None:
        """Record what came of a batch, and queue what is missing."""
        reading = BatchReading(self, flight)
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id is not None:
                await self._calls.read(file_id, reading.take, str(self._book.path(flight.record)))
        waits = batch.status == "failed" and reading.take_failure(batch.errors)
        self._holds = waits and len(self._flights) > 1
        for key in list(flight.open):
            fault = reading.faults.get(key) or Fault(
                f"batch_{batch.status}", f"batch {batch.id} ended ({batch.status}) without it", Verdict.RETRY
            )
            self._missing(flight, key, fault, counts=not self._holds and key not in reading.reshaped)
        self._book.finish(flight.record)
        self._flights.remove(flight)
        LOGGER.info("batch %s ended (%s): %s", batch.id, batch.status, reading.words())
        if batch.status == "failed" and not self._holds and self._refusal is None:
            await asyncio.sleep(self._batch.poll_interval)

    def _missing(self, flight: Flight, key: str, fault: Fault, *, counts: bool) -> None:
        """A row that a batch left without answer: submit it again, or give it up."""
        self._close(flight, key)
        request = self._requests.get(key)
        if request is None or self._config.batch is None or self._done(key) or self._refusal is not None:
            return
        attempt = flight.record.attempt
        if counts and attempt >= self._batch.max_rounds:
            self._record([self._tools.faults.failure(key, fault, attempt)])
        else:
            self._queue.append(_Row(request, attempt + counts))

    def _close(self, flight: Flight, key: str) -> Size:
        size = flight.open.pop(key)
        self._tools.ledger.release(size)
        return size

    def answered(self, flight: Flight, key: str, arguments: dict[str, Any]) -> None:
        """Record a row's answer."""
        extra = {**arguments["extra"], "batch": flight.id}
        answer = Completion(key=key, attempts=flight.record.attempt, **{**arguments, "extra": extra})
        size = self._close(flight, key)
        self._record([answer])
        self._tools.ledger.add(answer, size)
        if is_counted(answer):
            self._tools.estimator.learn(size, answer.prompt_tokens, answer.completion_tokens)

    def refused(self, flight: Flight, key: str, fault: Fault) -> None:
        """Record that a row cannot succeed."""
        self._close(flight, key)
        self._record([self._tools.faults.failure(key, fault, flight.record.attempt)])

    def ends_with(self, fault: Fault) -> None:
        """No row can succeed: what the batches under way bring is still taken in."""
        self._refusal = self._refusal or self._tools.faults.error(fault, self._config.base_urls[0])

    def could_be_reshaped(self, flight: Flight, key: str, fault: Fault, sent: dict[str, dict[str, Any]]) -> bool:
        """Whether the server refused an optional part of a row, which goes without it from now on."""
        if fault.reason not in {"http_400", "http_422"} or key not in self._requests:
            return False
        if not sent:
            sent.update(self._book.bodies(flight.record))
        return self._tools.features.adapts_to(fault, self._body(self._requests[key]), sent[key])

    def redacted(self, arguments: dict[str, Any]) -> dict[str, Any]:
        hidden: dict[str, Any] = self._tools.redactor.value(arguments)
        return hidden


async def until_stopped(work: Coroutine[Any, Any, None], stop: StopSignal) -> None:
    """Do `work`, and leave off at once when asked to: whatever it does, a kill at that moment would lose nothing."""
    task = asyncio.ensure_future(work)
    while not task.done() and not stop.requested:
        await asyncio.wait({task}, timeout=STOP_SECONDS)
    if not task.done():
        task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        if not stop.requested:
            raise
